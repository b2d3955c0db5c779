"""Mock engines, and a router over them, on loopback and inside the test's own loop."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from opentelemetry.sdk.trace import SpanProcessor
from starlette.types import ASGIApp

from draftpick.engines.config import Engine
from draftpick.engines.http.client import EngineClient
from draftpick.engines.http.server import LocalServer
from draftpick.engines.mock.app import MockEngine, MockSpec, mock_app
from draftpick.engines.replicas import ReplicaTable
from draftpick.router.config.router_config import RecordsConfig, RouterConfig
from draftpick.router.features.featurizer import Featurizer
from draftpick.router.http.app import RouterApp
from draftpick.router.http.auth import Keyring
from draftpick.router.monitoring.fleet_metrics import fleet_metrics, page_of
from draftpick.router.monitoring.gauges import StateCollector
from draftpick.router.online.events import EventLog
from draftpick.router.parts import Parts, build_parts
from draftpick.router.policies.base import Policy
from draftpick.router.policies.baselines import FixedPolicy
from draftpick.router.records import RecordWriter, read
from draftpick.router.registry.registry import Registry
from draftpick.router.telemetry.tracing import Tracing
from draftpick.router.types import Record
from tests.leaks import PROMPT

MODEL = "mock-model"
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
FAST = MockSpec(step_s=0, prefill_s=0, output_tokens=8)
SLOW = MockSpec(step_s=0.02, prefill_s=0, output_tokens=500)
FAILS = FAST.model_copy(update={"fail_share": 1.0})
HANGS = FAST.model_copy(update={"hang_share": 1.0})
BREAKS = FAST.model_copy(update={"break_share": 1.0})
REFUSING_URL = "http://127.0.0.1:9"
"""Where nobody listens: the port of `discard`."""


HOOKS: dict[str, list[Any]] = {"response": []}
"""What the clients of all routers below call with each answer."""
SPANS: list[SpanProcessor] = []
"""What takes the spans of the routers below that trace their requests."""


def asked(api: str = CHAT, text: str = f"hello {PROMPT}", **fields: Any) -> dict[str, Any]:
    """The body of a request to one of the three generating APIs."""
    prompts: dict[str, dict[str, Any]] = {
        CHAT: {"messages": [{"role": "user", "content": text}]},
        COMPLETIONS: {"prompt": text},
    }
    return {"model": MODEL, **prompts.get(api, {"input": text}), **fields}


def router_pids() -> list[int]:
    """The processes of `draftpick.deploy.launch.standalone.RouterProcesses` that run now, in the order of their
    numbers."""
    running = sorted(multiprocessing.active_children(), key=lambda process: process.name)
    return [process.pid for process in running if process.name.startswith("router-") and process.pid is not None]


async def until(condition: Callable[[], bool], timeout_s: float = 3.0) -> None:
    """Wait until `condition` holds; time in which a busy machine does not run the loop does not count."""
    for _ in range(round(timeout_s / 0.005)):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError(f"not so within {timeout_s:g} s")


@dataclass(frozen=True, slots=True)
class Mock:
    """A mock engine that is being served."""

    url: str
    engine: MockEngine
    server: LocalServer

    @property
    def last_body(self) -> bytes:
        return str(self.engine.state()["last_body"]).encode()

    @property
    def aborted(self) -> int:
        return self.engine.ended["aborted"]


async def serve(app: ASGIApp) -> LocalServer:
    """Serve `app`."""
    server = LocalServer(app)
    await server.start()
    return server


class Servers:
    """Servers that stop together."""

    def __init__(self) -> None:
        self._servers: list[LocalServer] = []

    async def serve(self, app: ASGIApp) -> LocalServer:
        """Serve `app` until `drain`."""
        server = await serve(app)
        self._servers.append(server)
        return server

    async def mock(self, spec: MockSpec = FAST, name: str = "x") -> Mock:
        """Start a mock engine."""
        app = mock_app(spec, model=MODEL, engine=name)
        server = await self.serve(app)
        return Mock(server.url, app.state.engine, server)

    async def drain(self) -> None:
        """Stop all at once."""
        await asyncio.gather(*(server.drain(0.1) for server in self._servers))


class Owned:
    """What `RouterApp` asks of its owner, over given parts; `steps`: what was started and stopped."""

    def __init__(self, parts: Parts, client: EngineClient) -> None:
        self._parts, self._client = parts, client
        self.registry: Registry | None = None
        self.steps: list[str] = []

    @property
    def events(self) -> EventLog:
        return self._parts.events

    async def start(self) -> None:
        self.steps.append("start")

    async def stop(self) -> None:
        self.steps.append("stop")

    def state(self) -> dict[str, object]:
        return {"ready": self._parts.replicas.reachable(), "policy": self._parts.active_policies.policy.id}

    async def metrics(self) -> str:
        own = await page_of([self._parts.attempts, self._parts.metrics, StateCollector(self._parts)])
        return await fleet_metrics(self._client, self._parts.replicas.urls(), {"0": own})


@dataclass(frozen=True, slots=True)
class Routed:
    """A router over mock engines that is being served, and a client of it."""

    client: httpx.AsyncClient
    server: LocalServer
    app: RouterApp
    parts: Parts
    replicas: ReplicaTable
    engines: dict[str, Mock]
    writer: RecordWriter
    folder: Path

    @property
    def num_attempts(self) -> int:
        self.parts.attempts.drain()
        return sum(self.parts.metrics.attempts().values())

    async def post(self, path: str = CHAT, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        """The answer to a request with these fields."""
        return await self.client.post(path, json=asked(path, **fields), headers=headers)

    async def records(self, count: int, timeout_s: float = 1.0) -> list[Record]:
        """All records, once there are `count`; the writer is closed with that."""
        await until(lambda: self.num_attempts >= count, timeout_s)
        await asyncio.to_thread(self.writer.close)
        found = list(read(self.folder))
        assert len(found) == count
        return found


@asynccontextmanager
async def routed(
    servers: Servers,
    folder: Path,
    specs: dict[str, MockSpec | str],
    policy: Policy | None = None,
    featurizer: Featurizer | None = None,
    model: str = MODEL,
    environment: dict[str, str] | None = None,
    plain: str | None = None,
    spans: SpanProcessor | None = None,
    **router: Any,
) -> AsyncIterator[Routed]:
    """A router over an engine for each of `specs` (a url instead of a specification: that address), the first by
    default. All requests are traced unless `tracing` says otherwise; spans go to `spans`, if given, and to `SPANS`.
    """
    engines = {arm: await servers.mock(spec, arm) for arm, spec in specs.items() if isinstance(spec, MockSpec)}
    default = next(iter(specs))
    usual = {
        "default_engine": default,
        "seed": 0,
        "records": RecordsConfig(dir=folder),
        "tracing": {"sample_rate": 1.0},
    }
    config = RouterConfig(**{**usual, **router})
    arms = [arm for name, spec in specs.items() for arm in _arms(name, spec)]
    replicas = ReplicaTable(arms, config.breaker, config.admission.max_in_flight_per_replica)
    for arm, spec in specs.items():
        replicas.update(arm, [spec if isinstance(spec, str) else engines[arm].url])
    writer = RecordWriter(config.records)
    engine_client = EngineClient(
        first_byte_timeout_s=config.first_byte_timeout_s,
        timeout_s=config.timeout_s,
        stream_idle_timeout_s=config.stream_idle_timeout_s,
    )
    chosen = policy or FixedPolicy(tuple(arms), default)
    tracing = Tracing(config.tracing, *filter(None, (spans, *SPANS))) if config.tracing.sample_rate else None
    parts = build_parts(config, chosen, featurizer, replicas, engine_client, writer, baseline=plain, tracing=tracing)

    owner = Owned(parts, engine_client)
    app = RouterApp(parts, model=model, config=config, owner=owner, keys=Keyring(config.keys, environment or {}))
    server = await servers.serve(app)
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=60, event_hooks=HOOKS) as client:
            yield Routed(client, server, app, parts, replicas, engines, writer, folder)
    finally:
        await engine_client.close()
        parts.attempts.close()
        await asyncio.to_thread(writer.close)


def _arms(name: str, spec: MockSpec | str) -> tuple[str, ...]:
    return (name,) if isinstance(spec, str) else Engine(name=name, kind="mock", mock=spec).arms


StartMock = Callable[..., Awaitable[Mock]]
StartRouter = Callable[..., Awaitable[Routed]]
