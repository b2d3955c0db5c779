"""What the picker tells a gateway of each request, and when the lease of it ends."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import orjson
import pytest
import pytest_asyncio
from pydantic import ValidationError

from draftpick.engines.errors import ConfigError
from draftpick.engines.http.client import EngineAccess, endpoint_of
from draftpick.engines.mock.app import MockSpec
from draftpick.router.config.sections import EppConfig
from draftpick.router.epp import ext_proc_pb2 as pb
from draftpick.router.epp.messages import BodyMode
from draftpick.router.epp.server import SERVICE, PickerServer
from draftpick.router.features.featurizer import LexicalFeaturizer
from tests.fleet import CHAT, FAST, REFUSING_URL, SLOW, Routed, asked, until
from tests.router.epp.gateway import Asked, Gateway, answered, note
from tests.router.request.test_leases import Start, ended, reporting
from tests.router.request.test_pool import POOL, policy

__all__ = ["reporting"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

BUFFERED, STREAMED = BodyMode.BUFFERED, BodyMode.FULL_DUPLEX_STREAMED
each_mode = pytest.mark.parametrize("mode", [BUFFERED, STREAMED], ids=lambda mode: mode.name)


class Picked(Gateway):
    """A gateway before a picker, whose router and engines it knows."""

    def __init__(self, app: Routed, server: PickerServer, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)
        self.app, self.server, self.channel = app, server, channel
        self.endpoints = {name: endpoint_of(engine.url) for name, engine in app.engines.items()}

    async def send(self, said: Asked, path: str = CHAT, **fields: Any) -> httpx.Response:
        """Send a request to its first endpoint, as its gateway does."""
        headers = {k: v for k, v in said.headers.items() if not k.startswith("answer:")}
        headers.pop("content-length", None)
        body = orjson.dumps(asked(path, **fields)) if said.body is None else said.body
        async with httpx.AsyncClient(timeout=10) as client:
            return await client.post(f"http://{said.endpoints[0]}{path}", content=body, headers=headers)


Connect = Callable[..., Awaitable[Picked]]


@pytest_asyncio.fixture(loop_scope="module")
async def picker(reporting: Start) -> AsyncIterator[Connect]:
    """Starts a gateway, a picker, a router and engines that report to it."""
    async with AsyncExitStack() as stack:

        async def connect(specs: dict[str, MockSpec | str], access: Any = None, **router: Any) -> Picked:
            app = await reporting(specs, **router)
            server = PickerServer(app.app, app.parts, "127.0.0.1", 0, access)
            await server.start()
            stack.push_async_callback(server.stop)
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{server.port}"))
            return Picked(app, server, channel)

        yield connect


@each_mode
async def test_the_gateway_is_told_where_to_send_and_the_engine_reports(picker: Connect, mode: BodyMode) -> None:
    made = await picker({"a": FAST, "b": FAST})
    async with made.request(mode=mode, headers={"x-request-id": "mine"}, max_tokens=3) as (call, said):
        assert said.endpoints == [made.endpoints["a"], made.endpoints["b"]]
        assert said.headers["x-request-id"] == "mine"
        assert made.app.replicas.in_flight() == {"a": 1, "b": 0}
        assert (await made.send(said, max_tokens=3)).status_code == 200
        shown = await answered(call, served=made.endpoints["a"])
    assert (shown["x-draftpick-request-id"], shown["x-draftpick-arm"]) == ("mine", "a")
    await ended(made.app)
    (record,) = await made.app.records(1)
    assert (record.outcome.status, record.outcome.output_tokens, record.path) == ("ok", 3, CHAT)
    assert made.app.parts.leases.ends["told"] == 1
    assert made.app.parts.leases.picks["picked"] == 1


@each_mode
async def test_an_unchanged_body_is_not_rewritten(picker: Connect, mode: BodyMode) -> None:
    made = await picker({"a": FAST})
    body = b'{ "stream": true, "model": "mock-model", "messages": [] }'
    said = await made.ask(body, mode)
    assert said.body == (None if mode == BUFFERED else body)
    assert "content-length" not in said.headers


@each_mode
async def test_a_pool_gets_its_forecast_in_the_body(picker: Connect, mode: BodyMode) -> None:
    arms = ("plain", "pool/none", "pool/ngram", "pool/math")
    specs: dict[str, MockSpec | str] = {"plain": FAST, "pool": POOL}
    router = {"policy": policy(arms, math=3.0), "featurizer": LexicalFeaturizer(), "exploration": {"rate": 0}}
    made = await picker(specs, **router)
    said = await made.ask(mode=mode, stream=True)
    assert said.body is not None
    assert said.headers["content-length"] == str(len(said.body))
    fields = orjson.loads(said.body)
    assert "draftpick_forecast" in fields.pop("vllm_xargs")
    assert fields == asked(stream=True), "all else is as the client sent it"
    await made.send(said)
    await ended(made.app)
    (record,) = await made.app.records(1)
    assert record.outcome.drafters is not None


async def test_a_body_in_pieces_with_trailers_keeps_both(picker: Connect) -> None:
    made = await picker({"a": FAST})
    body = orjson.dumps(asked(text="long " * 40_000))
    for trailers in (False, True):
        said = await made.ask(body, STREAMED, pieces=7, trailers=trailers)
        assert (said.body, said.trailers) == (body, trailers)
        assert said.endpoints == [made.endpoints["a"]]


@each_mode
async def test_a_compressed_body_reaches_the_engine_as_it_is_read(picker: Connect, mode: BodyMode) -> None:
    made = await picker({"a": FAST})
    plain = orjson.dumps(asked())
    said = await made.ask(gzip.compress(plain), mode, headers={"content-encoding": "gzip"})
    assert said.body == plain
    assert "content-encoding" in said.removed
    assert said.headers["content-length"] == str(len(plain))


async def test_a_gateway_that_does_not_say_how_it_shows_bodies_streams_them(picker: Connect) -> None:
    made = await picker({"a": FAST})
    assert (await made.ask(mode=None)).endpoints


async def test_a_gateway_that_shows_no_bodies_is_let_pass(picker: Connect, caplog: pytest.LogCaptureFixture) -> None:
    made = await picker({"a": FAST})
    no_body = await made.ask(b"", BodyMode.NONE, method="GET", path="/version")
    assert no_body.endpoints == [made.endpoints["a"]]
    call = made._process()
    first = pb.ProcessingRequest(protocol_config=pb.ProtocolConfiguration(request_body_mode=pb.NONE))
    first.request_headers.headers.headers.add(key=":path", raw_value=CHAT.encode())
    await call.write(first)
    assert not (await call.read()).HasField("dynamic_metadata")
    assert await answered(call) == {}
    await call.done_writing()
    assert "request_body_mode" in caplog.text


# --- errors: those of the proxy ---

ERRORS: dict[str, tuple[bytes | None, dict[str, Any], tuple[int, str]]] = {
    "no JSON": (b"{", {}, (400, "invalid_json")),
    "no object": (b"[1]", {}, (400, "invalid_json")),
    "too large": (b'{"x":"' + b"x" * 5000 + b'"}', {}, (413, "body_too_large")),
    "too large, inflated": (
        gzip.compress(b'{"x":"' + b"x" * 5000 + b'"}'),
        {"headers": {"content-encoding": "gzip"}},
        (413, "body_too_large"),
    ),
    "no gzip": (b"no gzip", {"headers": {"content-encoding": "gzip"}}, (415, "unsupported_encoding")),
    "unknown encoding": (b"{}", {"headers": {"content-encoding": "br"}}, (415, "unsupported_encoding")),
    "nested": (b"[" * 40 + b"]" * 40, {}, (400, "invalid_json")),
    "unknown arm": (None, {"headers": {"x-draftpick-arm": "b"}}, (400, "unknown_engine")),
    "bad timeout": (None, {"headers": {"x-draftpick-timeout": "soon"}}, (400, "bad_timeout")),
    "closed path": (None, {"path": "/pooling"}, (403, "path_not_open")),
    "bad method": (None, {"method": "TRACE"}, (405, "method_not_allowed")),
    "long URL": (None, {"path": f"{CHAT}?{'x' * 9000}"}, (414, "url_too_long")),
    "long headers": (None, {"headers": {"x-long": "x" * 40_000}}, (431, "headers_too_large")),
}


@each_mode
@pytest.mark.parametrize("name", ERRORS)
async def test_a_bad_request_gets_the_error_of_the_proxy(picker: Connect, mode: BodyMode, name: str) -> None:
    body, options, error = ERRORS[name]
    made = await picker({"a": FAST}, max_body_bytes=4096)
    if mode == STREAMED and body is not None and "headers" not in options:
        options = {**options, "pieces": 3, "headers": {"content-length": ""}}
    said = await made.ask(body, mode, **options)
    assert said.error == error
    assert said.headers["content-type"] == "application/json"
    method, path, headers = options.get("method", "POST"), options.get("path", CHAT), options.get("headers") or {}
    sent = {k: v for k, v in headers.items() if v}
    if "long" not in name:  # these are refused by the server itself, before any path
        content = orjson.dumps(asked()) if body is None else body
        relayed = await made.app.client.request(method, path, content=content, headers=sent)
        assert (relayed.status_code, relayed.json()["error"]) == (said.status, orjson.loads(said.body or b"")["error"])
    assert made.app.parts.leases.picks["refused"] == 1
    assert len(made.app.parts.leases) == 0


async def test_a_body_that_does_not_come_is_given_up(picker: Connect) -> None:
    made = await picker({"a": FAST}, receive_timeout_s=0.1)
    call = made._process()
    first = pb.ProcessingRequest(protocol_config=pb.ProtocolConfiguration(request_body_mode=pb.FULL_DUPLEX_STREAMED))
    for name, value in ((":path", CHAT), (":method", "POST")):
        first.request_headers.headers.headers.add(key=name, raw_value=value.encode())
    await call.write(first)
    said = Asked()
    note(said, await call.read())
    assert said.error == (408, "request_timeout")


async def test_keys_are_asked_for_as_by_the_proxy_and_engines_do_not_get_them(picker: Connect) -> None:
    made = await picker({"a": FAST}, environment={"DRAFTPICK_API_KEYS": "team"})
    assert (await made.ask()).error == (401, "invalid_api_key")
    said = await made.ask(headers={"authorization": "Bearer team"})
    assert said.endpoints
    assert "authorization" in said.removed


async def test_a_client_cannot_forge_what_only_the_router_says(picker: Connect) -> None:
    made = await picker({"a": FAST})
    made.app.parts.leases.inbox = None
    forged = {"x-draftpick-lease": "0;http://evil;0", "x-vllm-priority": "9", "cookie": "c", "x-kept": "1"}
    said = await made.ask(headers=forged)
    assert {"x-draftpick-lease", "x-vllm-priority", "cookie"} <= set(said.removed)
    assert "x-kept" not in said.removed


async def test_an_engines_own_key_is_sent_and_only_to_those_with_the_same(picker: Connect) -> None:
    access: dict[str, EngineAccess] = {}
    made = await picker({"a": FAST, "b": FAST, "c": FAST}, access)
    for name, key in (("a", "Bearer one"), ("b", "Bearer two"), ("c", "Bearer one")):
        access[made.app.engines[name].url] = EngineAccess(key)
    said = await made.ask(headers={"authorization": "Bearer none"})
    assert said.headers["authorization"] == "Bearer one"
    assert said.endpoints == [made.endpoints["a"], made.endpoints["c"]]


# --- which engines ---


async def test_only_engines_of_the_gateways_subset_are_chosen(picker: Connect) -> None:
    made = await picker({"a": FAST, "b": FAST, "c": FAST})
    said = await made.ask(subset=[made.endpoints["b"], made.endpoints["c"]])
    assert sorted(said.endpoints) == sorted([made.endpoints["b"], made.endpoints["c"]])
    for nobody in ([], ["10.0.0.1:80"]):
        assert (await made.ask(subset=nobody)).error == (503, "no_engine")
    pinned = await made.ask(subset=[made.endpoints["b"]], headers={"x-draftpick-arm": "a"})
    assert pinned.error == (503, "no_engine")


async def test_no_engine_is_503_and_a_full_router_429(picker: Connect) -> None:
    made = await picker({"a": FAST}, admission={"max_in_flight": 1, "max_queued": 0})
    async with made.request() as (_, said):
        assert said.endpoints
        full = await made.ask()
        assert full.error == (429, "overloaded")
        assert full.headers["retry-after"] == "1"
    gone = await picker({"a": REFUSING_URL}, wait_for_engine_s=5.0)
    (replica,) = gone.app.replicas.by_arm["a"]
    replica.unreachable = True
    replica.breaker.trip()
    assert (await gone.ask()).error == (503, "no_engine")


async def test_a_decision_that_takes_too_long_is_left_to_the_gateway(picker: Connect) -> None:
    made = await picker({"a": FAST}, admission={"max_in_flight": 1}, epp={"deadline_s": 0.05})
    async with made.request() as (_, first):
        assert first.endpoints
        said = await made.ask(headers={"cookie": "c"})
        assert said.endpoints == []
        assert said.removed == ["cookie"]
        assert made.app.parts.leases.picks == {"picked": 1, "refused": 0, "gave_up": 1, "left": 0}
        assert made.app.parts.admission.queued == 0


# --- the end of a lease ---


async def test_a_fallback_that_answered_ends_the_lease_elsewhere(picker: Connect) -> None:
    made = await picker({"a": FAST, "b": FAST})
    said = await made.ask(served=made.endpoints["b"])
    assert "answer:x-draftpick-arm" not in said.headers
    await ended(made.app)
    assert made.app.parts.leases.ends["elsewhere"] == 1


@pytest.mark.parametrize(
    ("details", "status"),
    [
        ("upstream_reset_before_response_started{remote_connection_failure|refused}", "engine_error"),
        ("upstream_reset_before_response_started{connection_termination}", "broken"),
        ("upstream_response_timeout", "timeout"),
        ("rbac_access_denied", "cancelled"),
    ],
)
async def test_what_no_engine_answered_is_the_engines_fault_only_if_it_failed(
    picker: Connect, details: str, status: str
) -> None:
    made = await picker({"a": FAST})
    async with made.request() as (call, _):
        await answered(call, served=made.endpoints["a"], details=details)
        await ended(made.app)
    (record,) = await made.app.records(1)
    assert record.outcome.status == status


@each_mode
async def test_a_client_that_leaves_frees_the_place(
    picker: Connect, mode: BodyMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draftpick.router.epp.picker._NO_ANSWER_S", 0.05)
    made = await picker({"a": FAST})
    async with made.request(mode=mode):
        assert made.app.replicas.in_flight() == {"a": 1}
    await ended(made.app)
    assert made.app.parts.leases.ends["cancelled"] == 1
    async with made.request(mode=mode) as (call, _):
        call.cancel()
        await ended(made.app)
    assert made.app.replicas.in_flight() == {"a": 0}


async def test_a_gateway_that_dies_while_it_waits_leaves_nothing(picker: Connect) -> None:
    made = await picker({"a": FAST}, admission={"max_in_flight": 1}, epp={"deadline_s": 30})
    async with made.request():
        waiting = asyncio.create_task(made.ask())
        await until(lambda: made.app.parts.admission.queued == 1)
        await made.channel.close()
        await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: made.app.parts.admission.queued == 0)


async def test_without_reports_a_lease_ends_with_its_stream(picker: Connect) -> None:
    made = await picker({"a": FAST})
    made.app.parts.leases.inbox = None
    async with made.request() as (call, _):
        await answered(call, made.endpoints["a"])
        assert len(made.app.parts.leases) == 1
    await ended(made.app)


async def test_a_lease_whose_report_does_not_come_ends_some_time_after_its_stream(
    picker: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draftpick.router.epp.picker._REPORT_S", 0.2)
    made = await picker({"a": FAST})
    await made.ask(served=made.endpoints["a"])
    assert len(made.app.parts.leases) == 1
    await ended(made.app)


async def test_parts_of_an_answer_pass(picker: Connect) -> None:
    made = await picker({"a": SLOW})
    async with made.request(mode=STREAMED) as (call, _):
        await answered(call, made.endpoints["a"])
        for part, last in ((b"data: 1\n\n", False), (b"", True)):
            await call.write(pb.ProcessingRequest(response_body=pb.HttpBody(body=part, end_of_stream=last)))
            passed = (await call.read()).response_body.response.body_mutation.streamed_response
            assert (passed.body, passed.end_of_stream) == (part, last)
        await call.write(pb.ProcessingRequest(response_trailers=pb.HttpTrailers()))
        assert (await call.read()).HasField("response_trailers")


async def test_other_paths_of_engines_have_no_body_to_wait_for(picker: Connect) -> None:
    made = await picker({"a": FAST})
    for mode in (BUFFERED, STREAMED):
        assert (await made.ask(b"", mode, method="GET", path="/version")).endpoints == [made.endpoints["a"]]


# --- its server ---


async def test_health_is_that_of_the_engines(picker: Connect) -> None:
    made = await picker({"a": FAST})
    serving, not_serving = pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING
    for service in ("", "readiness", "liveness", SERVICE):
        assert await made.health(service) == serving
    (replica,) = made.app.replicas.by_arm["a"]
    replica.unreachable = True
    assert [await made.health(service) for service in ("liveness", "readiness")] == [serving, not_serving]
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await made.health("other")
    assert unknown.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_port_that_is_taken_is_said(picker: Connect) -> None:
    made = await picker({"a": FAST})
    second = PickerServer(made.app.app, made.app.parts, "127.0.0.1", made.server.port)
    with pytest.raises(ConfigError, match="set another --port"):
        await second.start()


async def test_with_a_certificate_it_speaks_tls(picker: Connect, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    request = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    made_by = await asyncio.create_subprocess_exec("openssl", *request, *names, stderr=asyncio.subprocess.DEVNULL)
    assert await made_by.wait() == 0
    made = await picker({"a": FAST}, epp={"certificate_file": str(certificate), "key_file": str(key)})
    trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
    async with grpc.aio.secure_channel(f"localhost:{made.server.port}", trusted) as channel:
        assert (await Gateway(channel).ask()).endpoints == [made.endpoints["a"]]
    with pytest.raises(grpc.aio.AioRpcError):
        await made.ask()
    key.unlink()
    again = PickerServer(made.app.app, made.app.parts, "127.0.0.1", 0)
    with pytest.raises(ConfigError, match=r"router\.epp\.key_file"):
        await again.start()
    with pytest.raises(ValidationError, match="need each other"):
        EppConfig(certificate_file=certificate)
