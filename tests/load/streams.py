"""Many streams at once: `python -m tests.load.streams` holds 1,000 for a minute through real Ray Serve, mock engines.

Reported: how many were open at once for how long, how many failed, and whether the router's memory stays flat.
"""

import argparse
import asyncio
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from draftpick.deploy.config import resolve
from draftpick.deploy.console import out, progress_bar
from draftpick.deploy.launch.ray_serve import running
from draftpick.deploy.workflows.results import write
from draftpick.policy_training.evaluation.evaluate import Interval
from tests.load.clients import CHAT
from tests.load.faults import processes

_STEP_S = 2.0


@dataclass
class Counts:
    """Streams that are open, that ended whole, that failed; chunks that came."""

    open: int = 0
    whole: int = 0
    failed: int = 0
    chunks: int = 0


async def one(session: aiohttp.ClientSession, counts: Counts, tokens: int, reads_s: float) -> None:
    """One stream to its end; `reads_s`: a slow reader that pauses so long after each chunk."""
    body = {
        "model": "mock-model",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": tokens,
        "stream": True,
    }
    last, opened = b"", False
    try:
        async with session.post(CHAT, json=body) as answer:
            async for chunk in answer.content.iter_any():
                counts.open += not opened
                counts.chunks += 1
                last, opened = (last + chunk)[-200:], True
                await asyncio.sleep(reads_s)
    except (aiohttp.ClientError, TimeoutError, OSError):
        last = b""
    counts.open -= opened
    if last.rstrip().endswith(b"[DONE]"):
        counts.whole += 1
    else:
        counts.failed += 1


async def hold(url: str, n: int, seconds: float, bar: Any) -> tuple[Counts, int, list[float]]:
    """(counts, fewest streams open during the hold, resident MB of the router every second of it)."""
    counts, rss, fewest = Counts(), list[float](), n
    tokens = int((seconds + 0.06 * n) / _STEP_S)
    row = bar.add_task("streams open", total=n)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        tasks = []
        for _ in range(n):
            tasks.append(asyncio.create_task(one(session, counts, tokens, 0)))
            await asyncio.sleep(0.01)
        while counts.open + counts.failed < n:  # noqa: ASYNC110  # a gauge
            await asyncio.sleep(0.1)
        bar.update(row, completed=counts.open)
        for _ in range(round(seconds)):
            await asyncio.sleep(1)
            fewest = min(fewest, counts.open)
            rss.append(sum(p.memory_info().rss for p in processes("draftpick:router")) / 1e6)
        await asyncio.gather(*tasks)
    return counts, fewest, rss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    mock = {"step_s": _STEP_S, "prefill_s": 0.05, "max_running": 2 * args.n, "output_tokens": 10_000}
    engines = [{"name": name, "kind": "mock", "mock": mock} for name in ("plain", "other")]
    config = resolve(
        {
            "target": {"name": "mock-model"},
            "engines": engines,
            "router": {"policy": "uniform", "default_engine": "plain", "featurizer": "none"},
        }
    )
    with progress_bar() as bar, running(config, port=args.port) as url:
        counts, fewest, rss = asyncio.run(hold(url, args.n, args.seconds, bar))
    third = len(rss) // 3
    first, last = max(rss[:third]), max(rss[-third:])
    figures = {
        "streams_held": fewest,
        "seconds": args.seconds,
        "failed": counts.failed,
        "ended_whole": counts.whole,
        "chunks": counts.chunks,
        "router_rss_mb": last,
        "router_rss_growth": last / first,
    }
    for name, value in figures.items():
        out.print(f"{name:<20} {value:>10.2f}".replace(".00", ""), highlight=False)
    if args.json_file:
        write(args.json_file, args.n, {name: Interval(*(3 * (float(value),))) for name, value in figures.items()})


if __name__ == "__main__":
    main()
