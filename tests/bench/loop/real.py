"""The loop on real engines: `python -m tests.bench.loop.real --json-file FILE` (25 minutes).

Four engines of the embedded fleet over Ray Serve, a registry that is empty at first. Traffic of two kinds makes the
first policy, from records and shadows alone; then another kind comes, which that policy has not seen; a second
retraining makes a candidate, which must pass the gate. Both policies are then set beside each other on prompts of the
new kind that neither has seen, measured under every engine.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np

from draftpick.deploy.config import resolve, with_engines, with_router
from draftpick.deploy.console import out, progress_bar
from draftpick.deploy.launch.ports import free_port
from draftpick.deploy.launch.ray_serve import running
from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.deploy.workflows.results import write
from draftpick.policy_training.data.collect import measure, pinned_tasks
from draftpick.policy_training.data.contexts import contexts
from draftpick.policy_training.data.dataset import Dataset
from draftpick.policy_training.data.matrix import Matrix, matrix
from draftpick.policy_training.data.record_store import RecordStore
from draftpick.policy_training.evaluation.bootstrap import Bootstrap, bounds
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.learners import learner
from draftpick.policy_training.retraining.pipeline import RetrainingPlan, RetrainingResult, retrain
from draftpick.policy_training.train import policy_probabilities
from draftpick.policy_training.workloads import Prompt, generate
from draftpick.router.policies import read
from draftpick.router.registry.registry import Registry
from draftpick.router.router import static_featurizer
from tests.bench.figures import show

_ENGINES = ("plain", "suffix", "math", "code")
_KNOWN, _NEW = ("edit", "code"), ("math",)
_TOKENS = 48


def prompts_of(kinds: Sequence[str], n: int, seed: int) -> list[Prompt]:
    """Greedy prompts of these kinds."""
    made = generate(12 * n, seed=seed, sampled_share=0.0, max_tokens=_TOKENS)
    return [prompt for prompt in made if prompt.kind in kinds][:n]


def ask(url: str, model: str, prompts: Sequence[Prompt], on_progress: object) -> None:
    """Send prompts one after the other, as clients do, and wait for their shadows."""
    with httpx.Client(base_url=url, timeout=300) as client:
        for prompt in prompts:
            body = {"model": model, "messages": [{"role": "user", "content": prompt.text}], "temperature": 0}
            client.post("/v1/chat/completions", json={**body, "max_tokens": _TOKENS}).raise_for_status()
            on_progress()  # type: ignore[operator]
    time.sleep(15.0)


def compared(data: Matrix, old: np.ndarray, new: np.ndarray) -> Interval:
    """Time under the choices `old` over time under `new`, each [n, arms]; a bootstrap over prompts."""
    before, after = ((shares * data.time_s).sum(1) for shares in (old, new))
    draws = Bootstrap.of_places(len(before), 2000, np.random.default_rng(0))
    low, high = bounds(draws.ratios(before, after))
    return Interval(float(before.sum() / after.sum()), float(low), float(high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=60, help="requests of the known kinds, and as many of the new one")
    parser.add_argument("--held-out", type=int, default=30, help="prompts of the new kind that both are judged on")
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, progress_bar() as bar:
        home = Path(folder)
        (home / "registry").mkdir()
        settings = {"policy": str(home / "registry"), "records": {"dir": str(home / "records")}}
        more = {"featurizer": "static", "shadow": {"sample_rate": 1.0}}
        fleet = with_router(with_engines(resolve("seven"), list(_ENGINES)), **settings, **more)
        prepare_models(fleet)
        registry, plan = Registry(home / "registry"), RetrainingPlan(learner("tau_cost"), "plain")
        row = bar.add_task("requests", total=2 * args.n + len(_ENGINES) * args.held_out)

        def step() -> None:
            bar.advance(row)

        def train() -> RetrainingResult:
            store = RecordStore(str(home / "records"))
            made = retrain(store.records(), store.events(), registry, plan)
            out.print(f"{made.id}: {made.action} ({made.report['reason']})", highlight=False)
            return made

        with running(fleet, port=free_port(), timeout_s=900) as url:
            ask(url, fleet.target.name, prompts_of(_KNOWN, args.n, 71), step)
            first = train()
            if first.action == "refused":  # the first policy has nobody to lose to
                registry.pin(str(first.id), "bench")
                registry.unpin("bench")
            time.sleep(2.0)
            ask(url, fleet.target.name, prompts_of(_NEW, args.n, 72), step)
            second = train()
            held_out = prompts_of(_NEW, args.held_out, 73)
            tasks = pinned_tasks(held_out, list(_ENGINES), 0)
            measured = asyncio.run(measure(url, fleet.target.name, tasks, progress=lambda *_: step()))
        featurizer = static_featurizer()
        data = matrix(
            Dataset(tuple(measured), contexts([featurizer], held_out)), list(_ENGINES), featurizer=featurizer.id
        )
        old, new = (policy_probabilities(read(registry.folder(str(one.id))), data) for one in (first, second))
    passed = float(second.action == "candidate")
    fixed = data.time_s.sum(0)
    found = {
        "retrained_vs_old_on_new_traffic": compared(data, old, new),
        "retrained_vs_plain_on_new_traffic": compared(data, np.tile(np.eye(len(_ENGINES))[0], (len(data), 1)), new),
        "oracle_vs_old_on_new_traffic": Interval(*(float((old * data.time_s).sum() / data.time_s.min(1).sum()),) * 3),
        "gate_passed": Interval(passed, passed, passed),
        **{f"seconds/{arm}": Interval(*(float(s),) * 3) for arm, s in zip(data.arms, fixed, strict=True)},
    }
    show(found)
    if args.json_file:
        write(args.json_file, len(data), found, gate=second.report["gate"])


if __name__ == "__main__":
    main()
