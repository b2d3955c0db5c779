"""Routed against every other way to use as many engines, from idle to saturation: `python -m tests.bench.load`.

Clients that never pause, 1 to 128 of them, over four mock engines (`tests/bench/load/world.py`): our router; the same
with a policy that knows no load; each single engine four times; the four in turn; the least loaded of them; and an
oracle that knows all acceptance lengths. All have the same number of engines, and the same prompts. A figure
`<strategy>/<clients>` is the mean time of an answer over our router's in the same run (above 1: we are faster).
"""

import argparse
import asyncio
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from draftpick.deploy.console import progress_bar
from draftpick.deploy.workflows.results import write
from draftpick.engines.http.server import LocalServer
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.workloads import Prompt
from tests.bench.figures import show, spread
from tests.bench.load.driver import answered
from tests.bench.load.world import ARMS, Strategy, body, prompts, routed, strategies, train

CLIENTS = (1, 4, 16, 32, 64, 128)
_MIDDLE = (16, 32)
_ALONE = 8
"""With fewer clients than this, all strategies run at once: their engines only wait, and none has another's."""
_ROOT = Path(__file__).parents[3]
_REFERENCES = ("routed", "oracle")


def requests(clients: int) -> int:
    """How many are measured with so many clients."""
    return 40 if clients == 1 else min(25 * clients, 320 + clients)


def repeat(seed: int, ways: Sequence[Strategy]) -> dict[str, dict[int, float]]:
    """Mean seconds by strategy and clients, of one run."""
    logging.getLogger("draftpick").setLevel(logging.ERROR)
    places = [arm for way in ways for arm in ([way.fixed] * len(ARMS) if way.fixed in ARMS else ARMS)]
    command = [sys.executable, "-m", "tests.bench.load.engines", *places]
    engines = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert engines.stdout is not None
        urls = json.loads(engines.stdout.readline())
        fleets = {way.name: urls[i * len(ARMS) : (i + 1) * len(ARMS)] for i, way in enumerate(ways)}
        return asyncio.run(_sweep(seed, ways, fleets))
    finally:
        engines.terminate()
        engines.wait(30)


async def _sweep(seed: int, ways: Sequence[Strategy], fleets: dict[str, list[str]]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {way.name: {} for way in ways}
    rng = np.random.default_rng(seed)
    for clients in CLIENTS:
        made = prompts(requests(clients) + 2 * clients, 10 * seed + clients)

        async def measured(way: Strategy, made: Sequence[Prompt] = made, clients: int = clients) -> None:
            async with AsyncExitStack() as stack:
                router = routed(way, fleets[way.name], seed)
                await router.start()
                stack.push_async_callback(router.stop)
                server = LocalServer(router.app)
                await server.start()
                stack.push_async_callback(server.drain, 5.0)
                turns = ARMS if way.turns else None
                found[way.name][clients] = await answered(server.url, turns, [body(prompt) for prompt in made], clients)

        order = [ways[i] for i in rng.permutation(len(ways))]
        if clients < _ALONE:
            await asyncio.gather(*map(measured, order))
        else:
            for way in order:
                await measured(way)
    return found


def figures(runs: Sequence[dict[str, dict[int, float]]]) -> dict[str, Interval]:
    """What is reported of all runs."""
    ratios = {
        f"{name}/{clients}": [run[name][clients] / run["routed"][clients] for run in runs]
        for name in runs[0]
        for clients in CLIENTS
        if name != "routed"
    }
    others = [name for name in runs[0] if name not in _REFERENCES]
    best = {c: [min(run[name][c] for name in others) / run["routed"][c] for run in runs] for c in CLIENTS}
    medians = {c: float(np.median(values)) for c, values in best.items()}
    worst, middle = min(medians, key=lambda c: medians[c]), min(_MIDDLE, key=lambda c: medians[c])
    made = {
        "worst_vs_best_any_load": spread([1 / value for value in best[worst]]),
        "middle_gain": spread([value - 1 for value in best[middle]]),
        **{f"best_other/{c}": spread(values) for c, values in best.items()},
        **{name: spread(values) for name, values in ratios.items()},
    }
    seconds = {f"routed_s/{c}": spread([run["routed"][c] for run in runs]) for c in CLIENTS}
    return {**made, **seconds}


def plot(path: Path, runs: Sequence[dict[str, dict[int, float]]]) -> None:
    """Answers a second by clients: the higher, the better."""
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    colours = dict(zip(ARMS, ("#7a8ca3", "#3f7fbf", "#4aa37a", "#a36fb0"), strict=True))
    for name in runs[0]:
        values = np.asarray([[run[name][c] for c in CLIENTS] for run in runs])
        best = np.asarray([[min(way[c] for way in run.values()) for c in CLIENTS] for run in runs])
        speed = np.median(best / values, axis=0)
        style: dict[str, Any] = {"color": colours.get(name.removeprefix("fixed/"), "#999"), "linewidth": 1.2}
        if name in _REFERENCES:
            style = {"color": "#d9622b", "linewidth": 2.4, "linestyle": "-" if name == "routed" else ":"}
        elif not name.startswith("fixed/"):
            style["linestyle"] = {"text_only": "--", "least_loaded": "-.", "round_robin": ":"}[name]
        axes.plot(CLIENTS, speed, label=name.replace("fixed/", "four times ").replace("_", " "), **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(CLIENTS, [str(c) for c in CLIENTS])
    axes.set(xlabel="clients that never pause", ylabel="answers a second,\nagainst the best way at this load")
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(1.0, 0.1), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs, with other prompts each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=3, help="runs at once; each takes a third of a core")
    parser.add_argument("--only", nargs="*", help="these strategies alone, by their names, beside `routed`")
    parser.add_argument("--json-file", type=Path, help="also write the figures, and the plot beside them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, progress_bar() as bar:
        policy = Path(folder) / "policy"
        train(policy)
        ways = [w for w in strategies(policy) if not args.only or w.name in ("routed", *args.only)]
        row = bar.add_task("runs", total=args.repeats)
        runs = []
        with ProcessPoolExecutor(args.processes) as pool:
            for run in pool.map(repeat, range(args.seed, args.seed + args.repeats), [ways] * args.repeats):
                runs.append(run)
                bar.advance(row)
    found = figures(runs)
    show(found)
    if args.json_file:
        write(args.json_file, args.repeats * sum(requests(c) for c in CLIENTS), found)
        plot(args.json_file.with_suffix(".png"), runs)


if __name__ == "__main__":
    main()
