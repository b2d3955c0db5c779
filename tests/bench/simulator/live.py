"""Requests sent over HTTP when a simulation says that they come, to the arms that a strategy chooses."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from draftpick.engines.mock.app import MockSpec
from draftpick.policy_training.simulator.fleet import Fleet
from draftpick.policy_training.simulator.requests import Requests
from draftpick.policy_training.simulator.routing import Strategy
from draftpick.router.request.meter import acceptance
from tests.bench.simulator.fleet import MODEL, asked

_ROOT = Path(__file__).parents[3]
Body = Callable[[int], dict[str, Any]]
"""The body of request i."""


@dataclass(frozen=True, slots=True)
class Live:
    """Seconds from arrival to the last byte, arms, and acceptance lengths as engines told them (NaN: not told) [n]."""

    latency_s: np.ndarray
    arm: np.ndarray
    tau: np.ndarray
    output_tokens: np.ndarray
    prompt_tokens: np.ndarray


@contextmanager
def mock_fleet(fleet: Fleet, specs: Mapping[str, MockSpec]) -> Iterator[str]:
    """The address of a router over mock engines."""
    given = asked(dict(zip(fleet.names, fleet.replicas, strict=True)), specs)
    command = [sys.executable, "-m", "tests.bench.simulator.fleet", given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield (process.stdout or sys.stdin).readline().strip()
    finally:
        process.terminate()
        process.wait(30)


async def send(
    url: str, requests: Requests, body: Body, on_progress: Callable[[], None], strategy: Strategy | None, fleet: Fleet
) -> Live:
    """Send every request at its time. A router at `url` is told the arm that `strategy` chooses, by requests in flight.

    Without a strategy an engine is at `url` itself.
    """
    n, in_flight = len(requests), [0] * len(fleet.arms)
    found = Live(*(np.full(n, np.nan) for _ in range(5)))
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        await client.post("/v1/chat/completions", json=body(0))  # the first answer of all is slow
        began = time.perf_counter() + 0.1

        async def one(i: int) -> None:
            due = began + float(requests.arrival_s[i])
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            arm, headers = 0, {}
            if strategy is not None:
                least = [count // replicas for count, replicas in zip(in_flight, fleet.replicas, strict=True)]
                arm = strategy.choose(i, least)
                headers = {"x-draftpick-arm": fleet.names[arm]}
            in_flight[arm] += 1
            answer = (await client.post("/v1/chat/completions", json=body(i), headers=headers)).raise_for_status()
            found.latency_s[i] = time.perf_counter() - due
            in_flight[arm] -= 1
            fields = answer.json()
            found.arm[i], found.tau[i] = arm, acceptance(fields)[0] or np.nan
            found.output_tokens[i] = fields["usage"]["completion_tokens"]
            found.prompt_tokens[i] = fields["usage"]["prompt_tokens"]
            on_progress()

        await asyncio.gather(*(one(i) for i in range(n)))
    return found


def mock_body(requests: Requests) -> Body:
    """Prompts of as many tokens, of a class that the mock engine knows, and answers of as many tokens."""
    kinds: Sequence[str] = requests.kinds

    def body(i: int) -> dict[str, Any]:
        text = f"{i}" + " a" * (int(requests.prompt_tokens[i]) - 1)
        return {
            "model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0,
            "max_tokens": int(requests.output_tokens[i]), "mock_class": kinds[int(requests.kind[i])],
        }  # fmt: skip

    return body
