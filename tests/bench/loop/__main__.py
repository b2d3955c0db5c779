"""The loop that keeps getting better, by itself: `python -m tests.bench.loop` (`make loop`), mock engines, minutes.

`draftpick route` with a policy that knows two kinds of requests, exploration, shadows and correction; `draftpick
retrain --watch` beside it; clients that never pause. Meanwhile the kinds of requests change twice, a drafter dies, an
engine's step becomes dearer, and requests come in other words (`tests/bench/loop/world.py`).

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import matplotlib
import numpy as np
import yaml
from rich.progress import Progress

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from deploy.config import resolve
from deploy.console import out, progress_bar
from deploy.results import write
from deploy.route import Routers
from policy_training.contexts import contexts
from policy_training.costs import Costs
from policy_training.learners import learner
from policy_training.learners.base import Setting
from policy_training.matrix import Matrix
from policy_training.train import train_policy
from policy_training.workloads import Prompt, generate
from router.exchange import read_events
from router.online import Event
from router.policies import read as read_policy
from router.policies.base import Policy
from router.registry import Registry
from router.router import static_featurizer
from router.types import Context
from tests.bench.figures import show, spread
from tests.bench.loop.world import (
    ARMS,
    ENGINES,
    MODEL,
    TOKENS,
    Floats,
    Happening,
    Traffic,
    happenings,
    traffic,
)

_CLIENTS = 8
_WINDOW, _RECOVERED = 100, 1.08
_ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, slots=True)
class Run:
    """What clients saw of request i: its arm (-1: none), when it was sent, and whether it failed."""

    arm: np.ndarray
    sent: np.ndarray
    errors: int
    e2e_s: np.ndarray


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
    train_policy(data, learner("tau_cost"), Setting("plain", costs, seed), folder, {})
    return read_policy(folder)


async def drive(url: str, engines: Mapping[str, str], made: Traffic, story: Sequence[Happening], told: Any) -> Run:
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
                told()

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


def run(n: int, seed: int, folder: Path, told: Any) -> tuple[Traffic, Run, Policy, list[Event], list[str]]:
    """One run of the whole loop; and what the keeper said."""
    made, story = traffic(n, seed), happenings(n)
    registry = Registry(folder / "registry")
    frozen = first_policy(folder / "first", seed)
    registry.promote(registry.add(folder / "first", {"reason": "the first"}, "loop"), "loop")
    records = folder / "records"
    with ExitStack() as stack:
        engines = json.loads((stack.enter_context(_process("tests.bench.loop.engines")).stdout or sys.stdin).readline())
        file = folder / "fleet.yaml"
        router = {
            "policy": str(folder / "registry"), "default_engine": "plain", "seed": seed, "explore": 0.03,
            "featurizer": "static", "records": {"dir": str(records)}, "shadow": {"share": 0.04, "max_in_flight": 64},
            "exploration": {"floor": 0.001},
            "online": {"correction": {"enabled": True}},
        }  # fmt: skip
        fleet = [{"name": name, "url": url} for name, url in engines.items()]
        file.write_text(yaml.safe_dump({"target": {"name": MODEL}, "engines": fleet, "router": router}))
        routers = Routers(resolve(file), "127.0.0.1", 0, 1)
        stack.callback(routers.stop)
        routers.wait()
        keeping = [
            "--watch",
            "--no-prove",
            "--poll",
            "1",
            "--stages",
            "0.1,0.5",
            "--min-requests",
            "20",
            "--fewest-new",
            "300",
        ]
        places = ["--records", str(records), "--registry", str(folder / "registry")]
        keeper = stack.enter_context(_process("deploy.cli", "retrain", *places, *keeping, niceness=19))
        seen = asyncio.run(drive(routers.url, engines, made, story, told))
        time.sleep(2.0)
        keeper.terminate()
        said = (keeper.stdout or sys.stdin).read().splitlines()
    return made, seen, frozen, read_events(records / "online" / "events.jsonl"), said


def choices(policy: Policy, made: Traffic) -> np.ndarray:
    """What a policy would have chosen, without anything that it learned on the way."""
    featurizer = static_featurizer()
    vectors = contexts([featurizer], made.prompts)
    everywhere = np.ones(len(ARMS), bool)
    rows = [
        policy.probabilities(Context(vectors[p.id][featurizer.id], featurizer.id), everywhere) for p in made.prompts
    ]
    return np.asarray([policy.arms.index(ARMS[0]) if not row.any() else int(row.argmax()) for row in rows])


def noticed(story: Sequence[Happening], run: Run, events: Sequence[Event]) -> dict[str, float]:
    """Requests between a happening and the first event that tells of it; infinite where none does."""
    found = {}
    for i, happening in enumerate(story[1:], 1):
        end = story[i + 1].at if i + 1 < len(story) else len(run.sent)
        began, until = run.sent[happening.at], run.sent[end - 1]
        own = [
            e.time for e in events
            if e.kind in happening.noticed_by and happening.arm in (None, e.arm) and began <= e.time <= until + 1.0
        ]  # fmt: skip
        found[happening.name] = float((run.sent < own[0]).sum() - happening.at) if own else float("inf")
    return found


def recovered(story: Sequence[Happening], taken: Floats, best: Floats) -> dict[str, float]:
    """Requests after which a window's time is near the best again; infinite where it never is."""
    kernel = np.ones(_WINDOW)
    found = {}
    for i, happening in enumerate(story[1:], 1):
        end = story[i + 1].at if i + 1 < len(story) else len(taken)
        ratio = np.convolve(taken[happening.at : end], kernel, "valid") / np.convolve(
            best[happening.at : end], kernel, "valid"
        )
        near = np.flatnonzero(ratio <= _RECOVERED)
        found[happening.name] = float(near[0]) if len(near) else float("inf")
    return found


def figures(
    made: Traffic, seen: Run, frozen: Policy, events: Sequence[Event], story: Sequence[Happening]
) -> dict[str, float]:
    """All that is reported of one run."""
    rows = np.arange(len(made.prompts))
    best, answered = made.seconds.min(1), seen.arm >= 0
    taken = np.where(answered, made.seconds[rows, seen.arm], made.seconds.max(1))
    of_frozen = made.seconds[rows, choices(frozen, made)]
    told, well = noticed(story, seen, events), recovered(story, taken, best)
    return {
        "time_vs_hindsight": float(taken.sum() / best.sum()),
        "frozen_vs_hindsight": float(of_frozen.sum() / best.sum()),
        "best_fixed_vs_hindsight": float(made.seconds.sum(0).min() / best.sum()),
        "frozen_vs_loop": float(of_frozen.sum() / taken.sum()),
        "notice_requests_max": max(told.values()),
        "client_errors": float(seen.errors),
        "events": float(len(events)),
        **{f"notice_requests/{name}": value for name, value in told.items()},
        **{f"recover_requests/{name}": value for name, value in well.items()},
    }


def plot(path: Path, made: Traffic, seen: Run, frozen: Policy, story: Sequence[Happening]) -> None:
    """Time against the best in hindsight, in windows."""
    rows, kernel = np.arange(len(made.prompts)), np.ones(_WINDOW)
    best = np.convolve(made.seconds.min(1), kernel, "valid")
    figure, axes = plt.subplots(figsize=(10, 3.6), layout="constrained")
    fixed = int(made.seconds.sum(0).argmin())
    lines = {
        "the loop": (seen.arm, "#d9622b"), "frozen policy": (choices(frozen, made), "#7a8ca3"),
        f"best engine ({ARMS[fixed]})": (np.full(len(rows), fixed), "#b9c4d0"),
    }  # fmt: skip
    for label, (arm, colour) in lines.items():
        axes.plot(np.convolve(made.seconds[rows, arm], kernel, "valid") / best, label=label, color=colour)
    for happening in story[1:]:
        axes.axvline(happening.at - _WINDOW, color="#444", linewidth=0.6, linestyle=":")
        axes.text(
            happening.at - _WINDOW, axes.get_ylim()[1], f" {happening.name.replace('_', ' ')}", va="top", fontsize=8
        )
    axes.axhline(1.0, color="#444", linewidth=0.6)
    axes.set(xlabel="requests", ylabel=f"time against the best in hindsight\n(windows of {_WINDOW})")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, 0.93))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=9000, help="requests of a run")
    parser.add_argument("--repeats", type=int, default=3, help="runs, with another seed each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures, and the plot beside them")
    parser.add_argument("--keep", type=Path, help="folder that records, registry and events stay in")
    args = parser.parse_args()
    runs, story = [], happenings(args.n)
    with progress_bar() as bar:
        row = bar.add_task("requests", total=args.n * args.repeats)
        for repeat in range(args.repeats):
            with ExitStack() as stack:
                folder = (
                    args.keep / str(repeat) if args.keep else Path(stack.enter_context(tempfile.TemporaryDirectory()))
                )
                folder.mkdir(parents=True, exist_ok=True)
                made, seen, frozen, events, said = run(args.n, args.seed + repeat, folder, lambda: bar.advance(row))
                _tell(bar, seen, events, said)
                runs.append(figures(made, seen, frozen, events, story))
    found = {name: spread([one[name] for one in runs]) for name in runs[0]}
    show(found)
    if args.json:
        write(args.json, args.n * args.repeats, found)
        plot(args.json.with_suffix(".png"), made, seen, frozen, story)


def _tell(bar: Progress, seen: Run, events: Sequence[Event], said: Sequence[str]) -> None:
    bar.stop()
    for event in events:
        out.print(f"  request {int((seen.sent < event.time).sum()):5}  {event.kind}: {event.text}", highlight=False)
    for line in said:
        out.print(f"  keeper: {line}", highlight=False, soft_wrap=True)
    bar.start()


if __name__ == "__main__":
    main()
