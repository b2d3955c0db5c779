"""The real Envoy with the picker: what reaches engines and clients, and what becomes of traffic without it."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import pytest_asyncio

from draftpick.engines.mock.app import MockSpec
from draftpick.router.epp import ext_proc_pb2 as pb
from draftpick.router.epp import messages
from draftpick.router.features.featurizer import LexicalFeaturizer
from tests.fleet import CHAT, FAST, MODEL, SLOW, Routed, Servers, asked, until
from tests.router.epp import envoy
from tests.router.epp.envoy import needs_envoy
from tests.router.epp.test_picker import Connect, Picked, picker
from tests.router.request.test_leases import ended, reporting
from tests.router.request.test_pool import POOL, policy

__all__ = ["picker", "reporting"]

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs_envoy]

DEAD = "127.0.0.1:9"
STREAMED = {
    "processing_mode": {
        "request_body_mode": "FULL_DUPLEX_STREAMED",
        "request_trailer_mode": "SEND",
    }
}
STREAMED_BOTH = {
    "processing_mode": {
        **STREAMED["processing_mode"],
        "response_body_mode": "FULL_DUPLEX_STREAMED",
        "response_trailer_mode": "SEND",
    }
}
MODES = {"buffered": None, "streamed": STREAMED, "both ways": STREAMED_BOTH}
each_mode = pytest.mark.parametrize("change", MODES.values(), ids=MODES)


@dataclass(frozen=True, slots=True)
class World:
    """Envoy, the picker behind it, and engines."""

    client: httpx.AsyncClient
    made: Picked

    @property
    def app(self) -> Routed:
        return self.made.app

    def served(self) -> dict[str, int]:
        """Requests by engine."""
        return {name: engine.engine.started for name, engine in self.app.engines.items()}

    async def post(self, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        return await self.client.post(CHAT, json=asked(**fields), headers=headers)


StartWorld = Callable[..., Awaitable[World]]


@pytest_asyncio.fixture(loop_scope="module")
async def world(picker: Connect, tmp_path: Path) -> AsyncIterator[StartWorld]:
    """Starts engines, a picker, and Envoy before both. `dead`: endpoints of Envoy where nobody listens."""
    async with AsyncExitStack() as stack:

        async def start(
            specs: dict[str, MockSpec | str], change: Any = None, dead: tuple[str, ...] = (), **router: Any
        ) -> World:
            made = await picker(specs, **{"epp": {"deadline_s": 5.0}, **router})
            endpoints = [*made.endpoints.values(), *dead]
            config = envoy.at(free_port(), made.server.port, endpoints, {"message_timeout": "10s", **(change or {})})
            return World(await stack.enter_async_context(envoy.running(config, tmp_path)), made)

        yield start


def free_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@each_mode
async def test_the_picked_engine_answers_and_reports(world: StartWorld, change: Any) -> None:
    made = await world({"a": FAST, "b": FAST}, change)
    for arm, stream in (("b", False), ("b", True), ("a", False)):
        answer = await made.post({"x-draftpick-arm": arm}, stream=stream, max_tokens=3)
        assert (answer.status_code, answer.headers["x-draftpick-arm"]) == (200, arm)
        assert b"[DONE]" in answer.content if stream else answer.json()["usage"]["completion_tokens"] == 3
    assert made.served() == {"a": 1, "b": 2}
    await ended(made.app)
    assert made.app.parts.leases.ends["told"] == 3
    records = await made.app.records(3)
    assert {(one.outcome.status, one.decision.reason) for one in records} == {("ok", "pinned")}
    assert [one.outcome.output_tokens for one in records] == [3, 3, 3]


@each_mode
async def test_a_pool_gets_its_forecast(world: StartWorld, change: Any) -> None:
    arms = ("pool/none", "pool/ngram", "pool/math")
    made = await world({"pool": POOL}, change, policy=policy(arms, math=3.0), featurizer=LexicalFeaturizer())
    assert (await made.post(stream=False)).status_code == 200
    assert b"draftpick_forecast" in made.app.engines["pool"].last_body


@each_mode
async def test_errors_are_those_of_the_proxy(world: StartWorld, change: Any) -> None:
    made = await world({"a": FAST}, change, max_body_bytes=4096)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b'{"x": "' + b"x" * 3000

    for body, headers in (
        (b"{", {}),
        (b'{"x":"' + b"x" * 5000 + b'"}', {}),
        (b"no gzip", {"content-encoding": "gzip"}),
        (orjson.dumps(asked()), {"x-draftpick-arm": "nobody"}),
    ):
        answers = [await to.post(CHAT, content=body, headers=headers) for to in (made.client, made.app.client)]
        assert answers[0].status_code == answers[1].status_code >= 400
        assert answers[0].json() == answers[1].json()
    large = await made.client.post(CHAT, content=pieces())
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")
    assert made.served() == {"a": 0}


@each_mode
async def test_a_dead_first_endpoint_is_replaced_by_the_fallback(world: StartWorld, change: Any) -> None:
    made = await world({"dead": f"http://{DEAD}", "b": FAST}, change, dead=(DEAD,))
    answer = await made.post()
    assert answer.status_code == 200
    assert "x-draftpick-arm" not in answer.headers
    assert made.served() == {"b": 1}
    await ended(made.app)
    assert made.app.parts.leases.ends["elsewhere"] == 1


async def test_an_engine_that_is_killed_is_known_to_be_dead(world: StartWorld) -> None:
    made = await world({"a": FAST})
    await made.app.engines["a"].server.drain(0.1)
    assert (await made.post()).status_code == 503
    await ended(made.app)
    (record,) = await made.app.records(1)
    assert (record.outcome.status, record.outcome.fault) == ("engine_error", "network")
    assert made.app.replicas.by_arm["a"][0].unreachable


async def test_a_client_that_leaves_frees_its_place(world: StartWorld) -> None:
    made = await world({"a": SLOW})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.4):
            await made.post(stream=True)
    await ended(made.app)
    assert made.app.replicas.in_flight() == {"a": 0}
    assert made.app.parts.leases.ends["told"] == 1, "the engine has seen it leave"


async def test_a_stream_costs_the_picker_no_message(world: StartWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[str | None]()

    def read(data: bytes) -> Any:
        seen.append(messages.phase_of(request := pb.ProcessingRequest.FromString(data)))
        return request

    monkeypatch.setattr(messages, "read", read)
    made = await world({"a": FAST.model_copy(update={"step_s": 0.002, "output_tokens": 200})})
    answer = await made.post(stream=True, max_tokens=200)
    assert answer.content.count(b"data: ") > 100
    assert seen == ["request_headers", "request_body", "response_headers"]


async def test_a_picker_that_is_slow_is_given_up(world: StartWorld) -> None:
    made = await world({"a": FAST, "b": FAST}, {"message_timeout": "0.2s"}, admission={"max_in_flight": 1})
    async with made.made.request():
        began = time.perf_counter()
        answer = await made.post()
        assert answer.status_code == 200
        assert time.perf_counter() - began < 3.0, "the picker's own deadline is later"
    assert sum(made.served().values()) == 1


async def test_a_picker_that_stopped_stops_no_traffic(world: StartWorld) -> None:
    made = await world({"a": FAST, "b": FAST})
    assert (await made.post()).headers["x-draftpick-arm"] == "a"
    await made.made.server.stop()
    answers = [await made.post() for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 6
    assert all("x-draftpick-arm" not in answer.headers for answer in answers)
    assert made.served()["b"] > 0, "Envoy goes on by its own policy"


async def test_streams_and_new_requests_survive_the_picker(
    tmp_path: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command itself, killed in the middle; its engine has a name in place of an address."""
    streams = 40
    monkeypatch.setenv("DRAFTPICK_REPORT_SECRET", "a secret of some length")
    engine = await servers.mock(FAST.model_copy(update={"step_s": 0.02, "output_tokens": 100}))
    endpoint = engine.url.removeprefix("http://")
    file, ports = tmp_path / "fleet.yaml", [free_port() for _ in range(3)]
    fleet = {
        "target": {"name": MODEL},
        "engines": [{"name": "a", "url": engine.url.replace("127.0.0.1", "localhost")}],
        "router": {"default_engine": "a", "policy": "fixed"},
    }
    file.write_text(orjson.dumps(fleet).decode())
    command = ["-m", "draftpick", "epp", "-c", str(file), "--port", str(ports[0]), "--http-port", str(ports[1])]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, start_new_session=True)
    try:
        async with envoy.running(envoy.at(ports[2], ports[0], [endpoint]), tmp_path) as client:
            await _until_picked(client)
            tasks = [asyncio.create_task(client.post(CHAT, json=asked(stream=True))) for _ in range(streams)]
            await until(lambda: engine.engine.started > streams, timeout_s=10)
            os.killpg(process.pid, signal.SIGKILL)
            answers = await asyncio.gather(*tasks)
            assert [(one.status_code, b"[DONE]" in one.content) for one in answers] == [(200, True)] * streams
            after = [await client.post(CHAT, json=asked(max_tokens=1)) for _ in range(3)]
            assert [one.status_code for one in after] == [200] * 3
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _until_picked(client: httpx.AsyncClient) -> None:
    for _ in range(300):
        answer = await client.post(CHAT, json=asked(max_tokens=1))
        if "x-draftpick-arm" in answer.headers:
            return
        await asyncio.sleep(0.1)
    raise TimeoutError("the picker does not answer")
