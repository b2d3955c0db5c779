"""The loop that keeps getting better, by itself: `python -m tests.bench.loop` (`make loop`), mock engines, minutes.

`draftpick route` with a policy that knows two kinds of requests, exploration, shadows and correction; `draftpick
retrain --watch` beside it; clients that never pause. Meanwhile the kinds of requests change twice, a drafter dies, an
engine's step becomes dearer, and requests come in other words (`tests/bench/loop/world.py`). Then the same without
corrections of times: new policies alone keep up, which are proven and promoted on the way.

Time is what an answer takes by the engines' own specification; it is set against the best policy in hindsight, which
knows all of it before it happens, the policy of the beginning, and the best single engine.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import matplotlib
import numpy as np
import yaml
from rich.progress import Progress

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from draftpick.deploy.config import resolve
from draftpick.deploy.console import out, progress_bar
from draftpick.deploy.launch.standalone import RouterProcesses
from draftpick.deploy.workflows.results import write
from draftpick.policy_training.data.contexts import contexts
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.data.record_store import RecordStore
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.learners import learner
from draftpick.policy_training.learners.base import LearnerSetting
from draftpick.policy_training.train import train_policy
from draftpick.policy_training.workloads import Prompt, generate
from draftpick.router.policies import read as read_policy
from draftpick.router.policies.base import Policy
from draftpick.router.registry.registry import Registry
from draftpick.router.router import static_featurizer
from tests.bench.figures import show, spread
from tests.bench.loop.outcome import WINDOW, Loop, Run, choices, figures, figures_alone
from tests.bench.loop.world import ARMS, ENGINES, MODEL, TOKENS, Happening, Traffic, happenings, traffic

_CLIENTS = 8
_ROOT = Path(__file__).parents[3]


def first_policy(folder: Path, seed: int) -> Policy:
    """A policy of 600 requests of the two kinds that come first, measured under all engines."""
    kinds = happenings(6)[0].kinds or ()
    prompts = [p for p in generate(2400, seed=seed + 1, sampled_share=0.0, max_tokens=TOKENS) if p.kind in kinds][:600]
    featurizer, rng = static_featurizer(), np.random.default_rng(seed)
    made = contexts([featurizer], prompts)
    tau = np.asarray([[spec.tau("", p.kind) for spec in ENGINES.values()] for p in prompts])
    tau = np.maximum(tau * rng.lognormal(0, 0.2, tau.shape), 1.0)
    tau[:, 0] = 1.0
    steps = np.asarray([[spec.step_s] * 2 for spec in ENGINES.values()])
    costs = Costs(ARMS, steps, np.full(len(ARMS), 0.001), np.zeros(len(ARMS)))
    n, tokens = len(prompts), np.full(len(prompts), float(TOKENS))
    data = Matrix(
        prompt_ids=tuple(p.id for p in prompts), kinds=tuple(p.kind for p in prompts), arms=ARMS,
        time_s=costs.time_s(tau, np.zeros(n), tokens, np.zeros(n, bool)), acceptance_length=tau,
        acceptance_rate=np.full_like(tau, np.nan), prompt_tokens=np.full(n, 60.0), output_tokens=tokens,
        temperatures=np.zeros(n), dropped={}, featurizer=featurizer.id,
        contexts=np.stack([made[p.id][featurizer.id] for p in prompts]),
    )  # fmt: skip
    train_policy(data, learner("tau_cost"), LearnerSetting("plain", costs, seed), folder, {})
    return read_policy(folder)


async def drive(
    url: str, engines: Mapping[str, str], made: Traffic, story: Sequence[Happening], on_progress: Any
) -> Run:
    """Send all requests in order, a few at once, and let happen what happens."""
    n = len(made.prompts)
    arm, sent, e2e_s, errors = np.full(n, -1), np.zeros(n), np.zeros(n), 0
    numbers = iter(range(n))
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=_CLIENTS)) as client:

        async def one() -> None:
            nonlocal errors
            for i in numbers:
                for happening in story:
                    if happening.at == i and happening.arm is not None:
                        changes = dict(happening.change)
                        (await client.post(f"{engines[happening.arm]}/mock/state", json=changes)).raise_for_status()
                sent[i] = time.time()
                named = {"x-request-id": f"loop-{i}"}
                answer = await client.post(f"{url}/v1/chat/completions", json=_body(made.prompts[i]), headers=named)
                e2e_s[i] = time.time() - sent[i]
                if answer.status_code != 200:
                    errors += 1
                else:
                    arm[i] = ARMS.index(answer.headers["x-draftpick-arm"])
                on_progress()

        await asyncio.gather(*(one() for _ in range(_CLIENTS)))
    return Run(arm, sent, errors, e2e_s)


def _body(prompt: Prompt) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt.text}]
    return {"model": MODEL, "messages": messages, "max_tokens": TOKENS, "temperature": 0, "mock_class": prompt.kind}


@contextmanager
def _process(*command: str, niceness: int = 0) -> Iterator[subprocess.Popen[str]]:
    command = ("nice", "-n", str(niceness), sys.executable, "-m", *command)
    process = subprocess.Popen(
        command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


_KEEPING = (
    "--watch", "--no-require-significance", "--poll-interval", "1", "--canary-shares", "0.1,0.5",
    "--min-requests", "20", "--min-new-records", "300", "--holdout-requests", "1000",
)  # fmt: skip


def run(n: int, seed: int, folder: Path, on_progress: Any, corrected: bool) -> Loop:
    """One run; `corrected`: whether measured times correct predicted ones at once."""
    made, story = traffic(n, seed), happenings(n)
    registry = Registry(folder / "registry")
    frozen = first_policy(folder / "first", seed)
    registry.promote(registry.add(folder / "first", {"reason": "the first"}, "loop"), "loop")
    records = folder / "records"
    with ExitStack() as stack:
        engines = json.loads((stack.enter_context(_process("tests.bench.loop.engines")).stdout or sys.stdin).readline())
        file = folder / "fleet.yaml"
        router = {
            "policy": str(folder / "registry"), "default_engine": "plain", "seed": seed,
            "featurizer": "static", "records": {"dir": str(records)},
            "shadow": {"sample_rate": 0.04, "max_in_flight": 64},
            "exploration": {"rate": 0.03, "min_probability": 0.001},
            "online": {"correction": {"enabled": corrected}},
        }  # fmt: skip
        fleet = [{"name": name, "url": url} for name, url in engines.items()]
        file.write_text(yaml.safe_dump({"target": {"name": MODEL}, "engines": fleet, "router": router}))
        routers = RouterProcesses(resolve(file), "127.0.0.1", 0, 1)
        stack.callback(routers.stop)
        routers.wait()
        places = ["--records", str(records), "--registry", str(folder / "registry")]
        keeper = stack.enter_context(_process("draftpick", "retrain", *places, *_KEEPING, niceness=19))
        seen = asyncio.run(drive(routers.url, engines, made, story, on_progress))
        time.sleep(2.0)
        keeper.terminate()
        said = (keeper.stdout or sys.stdin).read().splitlines()
    store = RecordStore(str(records))
    return Loop(made, seen, frozen, store.events(), registry.state(), store.records(), said)


def plot(path: Path, loop: Loop, alone: Loop | None, story: Sequence[Happening]) -> None:
    """Time against the best in hindsight, in windows."""
    made, seen = loop.made, loop.seen
    rows, kernel = np.arange(len(made.prompts)), np.ones(WINDOW)
    best = np.convolve(made.seconds.min(1), kernel, "valid")
    figure, axes = plt.subplots(figsize=(10, 3.6), layout="constrained")
    fixed = int(made.seconds.sum(0).argmin())
    lines = {
        "the loop": (seen.arm, "#d9622b"),
        **({"without corrections": (alone.seen.arm, "#e8b04a")} if alone is not None else {}),
        "frozen policy": (choices(loop.frozen, made), "#7a8ca3"),
        f"best engine ({ARMS[fixed]})": (np.full(len(rows), fixed), "#b9c4d0"),
    }
    for label, (arm, colour) in lines.items():
        axes.plot(np.convolve(made.seconds[rows, arm], kernel, "valid") / best, label=label, color=colour)
    for happening in story[1:]:
        axes.axvline(happening.at - WINDOW, color="#444", linewidth=0.6, linestyle=":")
        axes.text(
            happening.at - WINDOW, axes.get_ylim()[1], f" {happening.name.replace('_', ' ')}", va="top", fontsize=8
        )
    axes.axhline(1.0, color="#444", linewidth=0.6)
    axes.set(xlabel="requests", ylabel=f"time against the best in hindsight\n(windows of {WINDOW})")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, 0.93))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=9000, help="requests of a run")
    parser.add_argument("--repeats", type=int, default=3, help="runs, with another seed each")
    parser.add_argument("--uncorrected-runs", type=int, default=2, help="runs without corrections")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json-file", type=Path, help="also write the figures, and the plot beside them")
    parser.add_argument("--keep", type=Path, help="folder that records, registry and events stay in")
    args = parser.parse_args()
    story, total = happenings(args.n), args.repeats + args.uncorrected_runs
    with progress_bar() as bar:
        row = bar.add_task("requests", total=args.n * total)

        def one(number: int, corrected: bool) -> Loop:
            with ExitStack() as stack:
                scratch = stack.enter_context(tempfile.TemporaryDirectory())
                folder = args.keep / f"{number}{'' if corrected else '-alone'}" if args.keep else Path(scratch)
                folder.mkdir(parents=True, exist_ok=True)
                made = run(args.n, args.seed + number, folder, lambda: bar.advance(row), corrected)
                _tell(bar, made)
                return made

        loops = [one(number, True) for number in range(args.repeats)]
        alone = [one(number, False) for number in range(args.uncorrected_runs)]
    runs = [[figures(loop, story) for loop in loops], [figures_alone(loop) for loop in alone]]
    found = {name: spread([figure[name] for figure in of]) for of in runs if of for name in of[0]}
    show(found)
    if args.json_file:
        write(args.json_file, args.n * total, found)
        plot(args.json_file.with_suffix(".png"), loops[0], alone[0] if alone else None, story)


def _tell(bar: Progress, loop: Loop) -> None:
    bar.stop()
    for event in loop.events:
        at = int((loop.seen.sent < event.time).sum())
        out.print(f"  request {at:5}  {event.kind}: {event.text}", highlight=False, soft_wrap=True)
    for line in loop.said:
        out.print(f"  keeper: {line}", highlight=False, soft_wrap=True)
    bar.start()


if __name__ == "__main__":
    main()
