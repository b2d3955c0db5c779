"""What the data path's guards cost: `python -m tests.bench.data_path --before TREE`.

One mock engine; requests straight to it, through the router of another source tree (an earlier checkout), through this
one, and through this one with keys and limits, in turn, one at a time. Compared by means and medians within one run; no
Ray, so that the router alone is seen.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import aiohttp
import numpy as np
import psutil

from draftpick.deploy.console import progress_bar
from draftpick.deploy.workflows.results import write
from draftpick.policy_training.evaluation.evaluate import Interval
from tests.bench.figures import show
from tests.load.clients import CHAT

ROOT = Path(__file__).parents[2]
KEY = "dp-benchmark"
BODY = {
    "model": "mock-model",
    "messages": [{"role": "user", "content": "word " * 200}],
    "max_tokens": 16,
}


@contextmanager
def process(tree: Path, *arguments: str, **environment: str) -> Iterator[tuple[str, psutil.Process]]:
    """(address, process) of a router or an engine with the packages of `tree`."""
    command = [sys.executable, str(ROOT / "tests/bench/router_process.py"), *arguments]
    env = {**os.environ, "PYTHONPATH": str(tree), **environment}
    started = subprocess.Popen(command, cwd=tree, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        yield started.stdout.readline().strip(), psutil.Process(started.pid)
    finally:
        started.terminate()
        started.wait(10)


async def one(session: aiohttp.ClientSession, url: str, stream: bool) -> float:
    """Seconds of one request."""
    began = time.perf_counter()
    headers = {"authorization": f"Bearer {KEY}"}
    async with session.post(url + CHAT, json={**BODY, "stream": stream}, headers=headers) as answer:
        await answer.read()
        assert answer.status == 200, await answer.text()
    return time.perf_counter() - began


async def repeat(urls: dict[str, str], processes: dict[str, psutil.Process], n: int) -> dict[str, float]:
    """One repeat: added mean and median milliseconds of each path, and CPU milliseconds of each router a request."""
    times: dict[str, list[float]] = {name: [] for name in urls}
    used = dict.fromkeys(processes, 0.0)
    async with aiohttp.ClientSession() as session:
        for number in range(-20, n):
            turn = number % len(urls)  # none always follows the same one
            for name, url in [*urls.items()][turn:] + [*urls.items()][:turn]:
                before = _cpu_s(processes.get(name))
                seconds = await one(session, url, stream=number // len(urls) % 2 == 0)
                if number >= 0:
                    times[name].append(seconds * 1e3)
                    if name in used:
                        used[name] += _cpu_s(processes[name]) - before
    figures = {}
    for name in processes:
        figures[f"{name}/added_mean_ms"] = float(np.mean(times[name]) - np.mean(times["direct"]))
        figures[f"{name}/added_median_ms"] = float(np.median(times[name]) - np.median(times["direct"]))
        figures[f"{name}/cpu_ms"] = used[name] * 1e3 / n
    return figures


def _cpu_s(process: psutil.Process | None) -> float:
    return 0.0 if process is None else sum(process.cpu_times()[:2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the version to compare with")
    parser.add_argument("-n", type=int, default=1000, help="requests on each path, half of them streams")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    with ExitStack() as stack, progress_bar() as bar:
        engine, _ = stack.enter_context(process(ROOT, "engine", "plain"))
        made = {
            "before": stack.enter_context(process(args.before.resolve(), "router", engine)),
            "after": stack.enter_context(process(ROOT, "router", engine)),
            "after_with_keys": stack.enter_context(process(ROOT, "router", engine, DRAFTPICK_API_KEYS=KEY)),
        }
        urls = {"direct": engine, **{name: url for name, (url, _) in made.items()}}
        processes = {name: found for name, (_, found) in made.items()}
        row, runs = bar.add_task("repeats", total=args.repeats), []
        for _ in range(args.repeats):
            runs.append(asyncio.run(repeat(urls, processes, args.n)))
            bar.advance(row)
    figures = {k: Interval(float(np.mean(v)), min(v), max(v)) for k in runs[0] if (v := [run[k] for run in runs])}
    ratios = [run["after/added_mean_ms"] / run["before/added_mean_ms"] for run in runs]
    figures["after_over_before"] = Interval(float(np.mean(ratios)), min(ratios), max(ratios))
    cpu = [run["after/cpu_ms"] / run["before/cpu_ms"] for run in runs]
    figures["after_over_before/cpu"] = Interval(float(np.mean(cpu)), min(cpu), max(cpu))
    show(figures)
    if args.json_file:
        write(args.json_file, args.n * args.repeats, figures, bracket=f"range of {args.repeats} repeats")


if __name__ == "__main__":
    main()
