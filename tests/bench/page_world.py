"""A router with something to show: the policy that ships in a registry with a candidate, mock engines, some traffic."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np

from draftpick.engines.http.server import LocalServer
from draftpick.engines.mock.app import MockSpec, mock_app
from draftpick.policy_training.workloads import Prompt, generate
from draftpick.router.config.router_config import load_config
from draftpick.router.policies import SHIPPED, artifact
from draftpick.router.registry.registry import Registry
from draftpick.router.router import Router, fixed_address
from draftpick.router.telemetry.recent_requests import KEPT
from tests.engine_process import EngineProcess

MODEL = "smollm2-135m-instruct"
STEP_S = {
    "plain": 0.034,
    "suffix": 0.037,
    "hybrid": 0.038,
    "general": 0.040,
    "math": 0.041,
    "code": 0.040,
    "chat": 0.041,
}
TAU = {
    "suffix": {"edit": 3.4, "summary": 1.6, "code": 1.4, "json": 1.5},
    "hybrid": {"edit": 3.0, "summary": 1.7, "code": 1.6, "json": 1.7},
    "general": {"math": 1.8, "code": 1.7, "chat": 1.7, "summary": 1.6, "json": 1.7, "edit": 1.6},
    "math": {"math": 2.4}, "code": {"code": 2.2}, "chat": {"chat": 1.9},
}  # fmt: skip
GATE = [
    ("worst_slice", True, "none is slower than the default arm; 6 of 6 slices judged"),
    ("replay_gain", True, "gains 6.1% of the time (2.8% to 9.4%)"),
    ("rewording", True, "keeps 97% of the gain where the words are others"),
]
KILLED = "suffix"
"""The engine that is a process of its own."""


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[tuple[Router, str, EngineProcess]]:
    """A router over seven mock engines, with the policy that ships in a registry; its address; an engine to kill."""
    killed = EngineProcess(engine(KILLED), MODEL, KILLED)
    inside = {arm: LocalServer(mock_app(engine(arm), model=MODEL, engine=arm)) for arm in STEP_S if arm != KILLED}
    await asyncio.gather(killed.start(), *(server.start() for server in inside.values()))
    engines = {arm: inside[arm].url if arm in inside else killed.url for arm in STEP_S}
    settings = {
        "policy": str(registry(folder / "policies").path),
        "default_engine": "plain",
        "exploration": {"rate": 0.05},
        "seed": 0,
    }
    listed = [{"name": arm, "url": url} for arm, url in engines.items()]
    made = {"target": {"name": MODEL}, "engines": listed, "router": settings}
    router = Router(load_config(made), {arm: fixed_address(url) for arm, url in engines.items()})
    await router.start()
    server = LocalServer(router.app)
    await server.start()
    try:
        yield router, server.url, killed
    finally:
        await asyncio.gather(server.drain(0.1), killed.kill(), *(one.drain(0.1) for one in inside.values()))
        await router.stop()


def registry(path: Path) -> Registry:
    """One with an active policy, one before it, and a candidate that passed its gate."""
    made, (manifest, arrays) = Registry(path), artifact.read(SHIPPED)
    for i, reason in enumerate(("the policy that ships", "800 new records", "1,200 new records")):
        changed = {**arrays, "start_s": arrays["start_s"] * np.float32(1 + 0.01 * i)}
        folder = path.with_name(f"made-{i}")
        artifact.write(folder, manifest, changed)
        checks = [{"name": name, "passed": passed, "why": why} for name, passed, why in GATE]
        id = made.add(folder, {"reason": reason, "gate": {"passed": True, "checks": checks}}, "retrain")
        if i < 2:
            made.promote(id, "retrain", "all gates passed")
    made.set_canary_share("p0003", 0.1, "keeper", "no harm in 400 requests", start=True)
    return made


def engine(arm: str) -> MockSpec:
    """What a mock engine of that name does."""
    by_class = TAU.get(arm, {})
    usual = 1.15 if by_class else 1.0
    fields = {
        "acceptance_length": usual,
        "acceptance_by_class": by_class,
        "num_speculative_tokens": 8 if by_class else 0,
    }
    return MockSpec.model_validate(
        {
            "step_s": STEP_S[arm],
            "step_s_per_request": 0.002,
            "jitter": 0.05,
            "prefill_s": 0.03,
            "output_tokens": 60,
            **fields,
        }
    )


async def traffic(url: str, seconds: float, rate: float = 8.0) -> None:
    """Requests of six kinds, so many a second."""
    prompts, waiting = (
        itertools.cycle(generate(240, seed=3, sampled_share=0.4, max_tokens=64)),
        set[asyncio.Task[None]](),
    )
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            waiting.add(asyncio.create_task(_ask(client, next(prompts))))
            await asyncio.sleep(1 / rate)
        await asyncio.gather(*waiting)


async def _ask(client: httpx.AsyncClient, prompt: Prompt) -> None:
    body = {
        "model": MODEL, "messages": [{"role": "user", "content": prompt.text}], "temperature": prompt.temperature,
        "max_tokens": prompt.max_tokens, "mock_class": prompt.kind,
    }  # fmt: skip
    (await client.post("/v1/chat/completions", json=body)).raise_for_status()


def fill(router: Router) -> None:
    """Let a router remember as many attempts as it can, by counting those it has again."""
    recent = router.parts.recent
    router.parts.attempts.drain()
    for seen in itertools.islice(itertools.cycle(list(recent._pending_ring)), KEPT):
        recent._pending_ring.append(seen)
        recent.num_unprocessed += 1
