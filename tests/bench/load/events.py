"""A flash crowd, a dead engine and silent engines, under routed traffic: `python -m tests.bench.load.events`.

Requests come at random (Poisson), whatever the engines do, over the four mock engines of `tests/bench/load/world.py`.
Within each stretch in which nothing changes, an arm's requests a second must scatter no more than chance lets them:
`swings` is the greatest variance of an arm's share over that of independent draws; `swings_by_chance` is what the
greatest of all stretches stays below in 95 of 100 runs in which nothing swings.
"""

import argparse
import asyncio
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import matplotlib
import numpy as np
import numpy.typing as npt

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from draftpick.deploy.console import progress_bar
from draftpick.deploy.workflows.results import write
from draftpick.engines.http.server import LocalServer
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.router.router import Router
from tests.bench.figures import show
from tests.bench.load.world import ARMS, Strategy, body, prompts, routed, train

_ROOT = Path(__file__).parents[3]
_SETTLE_S, _DRAWS = 6.0, 1000
Counts = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """Seconds of traffic at a rate; `path` is posted to these `engines` as it begins."""

    name: str
    seconds: float
    rate: float
    engines: tuple[str, ...] = ()
    path: str = ""


STORY = (
    Part("calm", 20, 12),
    Part("flash crowd", 20, 90),
    Part("calm again", 20, 12),
    Part("math is dead", 20, 30, ("math",), "/dead"),
    Part("math is back", 30, 30, ("math",), "/talking"),
    Part("eagle is silent", 20, 30, ("eagle",), "/silent"),
    Part("all are silent", 20, 12, ARMS, "/silent"),
    Part("all talk", 20, 30, ARMS, "/talking"),
)


@dataclass(slots=True)
class Seen:
    """One request: when it came, its part, its arm and time; no arm: it was lost."""

    at: float
    part: int
    arm: str | None = None
    seconds: float = 0.0


async def traffic(url: str, engines: dict[str, str], seed: int, on_progress: object) -> list[Seen]:
    """Send the requests of the story when they are due."""
    rng, seen, began = np.random.default_rng(seed), list[Seen](), time.perf_counter()
    made = iter(prompts(int(1.2 * sum(part.seconds * part.rate for part in STORY)) + 100, seed))
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=2000)) as client:

        async def ask(one: Seen) -> None:
            sent = time.perf_counter()
            answer = await client.post(f"{url}/v1/chat/completions", json=body(next(made)))
            one.seconds = time.perf_counter() - sent
            one.arm = answer.headers["x-draftpick-arm"] if answer.status_code == 200 else None

        async with asyncio.TaskGroup() as group:
            due = 0.0
            for number, part in enumerate(STORY):
                for arm in part.engines:
                    await client.post(f"{engines[arm]}{part.path}")
                end = due + part.seconds
                while (due := due + rng.exponential(1 / part.rate)) < end:
                    await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
                    seen.append(Seen(due, number))
                    group.create_task(ask(seen[-1]))
                due = end
                on_progress()  # type: ignore[operator]
    return seen


def run(seed: int, on_progress: object) -> list[Seen]:
    """One run."""
    command = [sys.executable, "-m", "tests.bench.load.engines", *ARMS]
    process = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        engines = dict(zip(ARMS, json.loads(process.stdout.readline()), strict=True))
        with tempfile.TemporaryDirectory() as folder:
            train(Path(folder) / "policy")
            router = routed(Strategy("routed", policy=str(Path(folder) / "policy")), list(engines.values()), seed)
            return asyncio.run(_serve(router, engines, seed, on_progress))
    finally:
        process.terminate()
        process.wait(30)


async def _serve(router: Router, engines: dict[str, str], seed: int, on_progress: object) -> list[Seen]:
    await router.start()
    server = LocalServer(router.app)
    await server.start()
    try:
        return await traffic(server.url, engines, seed, on_progress)
    finally:
        await server.drain(5.0)
        await router.stop()


def counted(seen: Sequence[Seen], number: int) -> Counts:
    """Requests by second of a settled part and arm [seconds, arms]."""
    begin = sum(part.seconds for part in STORY[:number]) + _SETTLE_S
    settled = [one for one in seen if one.part == number and one.at >= begin and one.arm]
    made = np.zeros((int(settled[-1].at - begin) + 1, len(ARMS)))
    for one in settled:
        made[int(one.at - begin), ARMS.index(one.arm or "")] += 1
    return made


def swings(counts: Counts) -> float:
    """The greatest variance of an arm's requests a second over that of independent draws, of counts [seconds, arms]."""
    total, shares = counts.sum(1, keepdims=True), counts.sum(0) / counts.sum()
    usual = (shares * (1 - shares) * total).sum(0)
    found = ((counts - shares * total) ** 2).sum(0) / np.maximum(usual, 1e-9)
    return float(max([1.0, *found[(shares > 0.02) & (shares < 0.98)]]))


def by_chance(parts: Sequence[Counts]) -> float:
    """What the greatest of `swings` of these parts stays below in 95 % of the cases where every draw is independent."""
    rng, most = np.random.default_rng(0), np.ones(_DRAWS)
    for counts in parts:
        total, shares = counts.sum(1).astype(int), counts.sum(0) / counts.sum()
        most = np.maximum(most, [swings(rng.multinomial(total, shares).astype(float)) for _ in range(_DRAWS)])
    return float(np.quantile(most, 0.95))


def figures(seen: Sequence[Seen]) -> dict[str, Interval]:
    """What is reported."""
    made: dict[str, float] = {"lost": float(sum(one.arm is None for one in seen)), "requests": float(len(seen))}
    for number, part in enumerate(STORY):
        end = sum(p.seconds for p in STORY[:number])
        settled = [one for one in seen if one.part == number and one.at >= end + _SETTLE_S and one.arm]
        shares = {arm: sum(one.arm == arm for one in settled) / len(settled) for arm in ARMS}
        made[f"swings/{part.name}"] = swings(counted(seen, number))
        made[f"seconds/{part.name}"] = float(np.mean([one.seconds for one in settled]))
        made |= {f"share/{part.name}/{arm}": share for arm, share in shares.items()}
    most = max(value for name, value in made.items() if name.startswith("swings/"))
    # An arm that is slower for every request alone is needed in the crowd, and not before.
    least = min(made[f"share/flash crowd/{arm}"] for arm in ARMS)
    chance = by_chance([counted(seen, number) for number in range(len(STORY))])
    made = {"swings_max": most, "swings_by_chance": chance, "least_share_in_the_crowd": least, **made}
    return {name: Interval(value, value, value) for name, value in made.items()}


def plot(path: Path, seen: Sequence[Seen]) -> None:
    """Requests a second by arm, and how long they took."""
    end = int(sum(part.seconds for part in STORY))
    figure, (rates, times) = plt.subplots(2, 1, figsize=(10, 5), layout="constrained", sharex=True)
    rows = [np.bincount([int(o.at) for o in seen if o.arm == arm], minlength=end)[:end] for arm in ARMS]
    rates.stackplot(range(end), rows, labels=ARMS, colors=("#7a8ca3", "#3f7fbf", "#4aa37a", "#a36fb0"), step="mid")
    means = [[o.seconds for o in seen if int(o.at) == second] or [np.nan] for second in range(end)]
    times.plot([np.mean(one) for one in means], color="#d9622b")
    times.set(xlabel="seconds", ylabel="mean seconds\nof an answer", ylim=(0, None))
    rates.set(ylabel="requests a second")
    begin = 0.0
    for part in STORY:
        for axes in (rates, times):
            axes.axvline(begin, color="#444", linewidth=0.6, linestyle=":")
        rates.text(begin, rates.get_ylim()[1], f" {part.name}", va="top", fontsize=8)
        begin += part.seconds
    rates.legend(fontsize=8, loc="upper right", frameon=False)
    for axes in (rates, times):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json-file", type=Path, help="also write the figures, and the plot beside them")
    args = parser.parse_args()
    logging.getLogger("draftpick").setLevel(logging.ERROR)
    with progress_bar() as bar:
        row = bar.add_task("parts of the story", total=len(STORY))
        seen = run(args.seed, lambda: bar.advance(row))
    found = figures(seen)
    show(found)
    if args.json_file:
        write(args.json_file, len(seen), found)
        plot(args.json_file.with_suffix(".png"), seen)


if __name__ == "__main__":
    main()
