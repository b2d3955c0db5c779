"""Clients that go away: `python -m tests.load.disconnects`, 10,000 requests through real Ray Serve, mock engines.

Nine in ten leave at a random moment, half of them from streams. Reported: what is left behind in the router and in the
engines, and how long after a client left its engine's slot was free.
"""

import argparse
import asyncio
import random
import time
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
from ray import serve

from draftpick.deploy.app import APP_NAME
from draftpick.deploy.config import resolve
from draftpick.deploy.console import out, progress_bar
from draftpick.deploy.launch.ray_serve import running
from draftpick.deploy.workflows.results import write
from draftpick.policy_training.evaluation.evaluate import Interval
from tests.load.clients import CHAT
from tests.load.faults import processes

_LONGEST_STAY_S = 0.3


async def ask(session: aiohttp.ClientSession, number: int, left: dict[str, float], rng: random.Random) -> str:
    """One request; how it ended: `whole`, `left`, or the error."""
    leaves, stream = rng.random() < 0.9, rng.random() < 0.5
    body = {
        "model": "mock-model",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 500 if leaves else 3,
        "stream": stream,
    }
    request_id = f"gone-{number}"
    try:
        async with asyncio.timeout(rng.uniform(0, _LONGEST_STAY_S) if leaves else 60):
            async with session.post(CHAT, json=body, headers={"x-request-id": request_id}) as answer:
                await answer.read()
                return "whole" if answer.status == 200 else f"http_{answer.status}"
    except TimeoutError:
        left[request_id] = time.time()
        return "left"
    except aiohttp.ClientError as error:
        return type(error).__name__


async def run(url: str, n: int, concurrency: int, bar: Any) -> tuple[dict[str, int], dict[str, float], float]:
    """(requests by end, when each client left, seconds until nothing was left in flight)."""
    row, left, ends = bar.add_task("requests", total=n), dict[str, float](), dict[str, int]()
    limit, rng = asyncio.Semaphore(concurrency), random.Random(0)
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(number: int) -> None:
            async with limit:
                end = await ask(session, number, left, rng)
            ends[end] = ends.get(end, 0) + 1
            bar.advance(row)

        await asyncio.gather(*(one(number) for number in range(n)))
    return ends, left, time.monotonic()


def remains(before: dict[str, Any], engines: list[str]) -> dict[str, int]:
    """What is there now that was not there before: requests, places, slots, tasks, sockets."""
    now = _router()
    slots = [httpx.get(f"{url}/mock/state").json() for url in engines]
    return {
        "in_flight": sum(now["in_flight"].values()),
        "places": now["admission"]["in_flight"],
        "engine_slots": sum(s["running"] + s["waiting"] for s in slots),
        "tasks": max(0, now["tasks"] - before["tasks"]),
        "sockets": max(0, _sockets(engines) - before["sockets"]),
    }


def _router() -> dict[str, Any]:
    return dict(serve.get_deployment_handle("router", APP_NAME).state.remote().result())


def _sockets(engines: list[str]) -> int:
    """Connections of the router to engines: one each for its looks at their pages, and those that wait for the next
    request, which are closed after two minutes."""
    ports = {int(url.rsplit(":", 1)[1]) for url in engines}
    found = (c for p in processes("draftpick:router") for c in p.net_connections("tcp"))
    return sum(c.status == "ESTABLISHED" and bool(c.raddr) and c.raddr.port in ports for c in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    mock = {"step_s": 0.05, "prefill_s": 0.005}
    engines = [{"name": name, "kind": "mock", "mock": mock} for name in ("plain", "other")]
    router = {"policy": "uniform", "default_engine": "plain", "featurizer": "lexical"}
    config = resolve({"target": {"name": "mock-model"}, "engines": engines, "router": router})
    with progress_bar() as bar, running(config, port=args.port) as url:
        before = _router()
        addresses = [address for replicas in before["breakers"].values() for address in replicas]
        before["sockets"] = _sockets(addresses)
        ends, left, ended = asyncio.run(run(url, args.n, args.concurrency, bar))
        while any((left_behind := remains(before, addresses)).values()) and time.monotonic() - ended < 140:
            time.sleep(1)
        aborted = {id: at for url in addresses for id, at in httpx.get(f"{url}/mock/aborts").json()["aborts"]}
    delays = np.asarray([(at - left[id]) * 1e3 for id, at in aborted.items() if id in left])
    figures = {
        "requests": args.n,
        "left": ends.pop("left", 0),
        "whole": ends.pop("whole", 0),
        "failed": sum(ends.values()),
        "left_behind": sum(left_behind.values()),
        "cancelled_at_engines": len(delays),
        **{f"cancel_p{q}_ms": float(np.percentile(delays, q)) for q in (50, 95, 99)},
        "cancel_max_ms": float(delays.max()),
    }
    for name, value in figures.items():
        out.print(f"{name:<24} {value:>10.1f}".replace(".0", ""), highlight=False)
    out.print(f"left behind: {left_behind}; other ends: {ends or 'none'}", highlight=False)
    if args.json_file:
        write(args.json_file, args.n, {name: Interval(*(3 * (float(value),))) for name, value in figures.items()})


if __name__ == "__main__":
    main()
