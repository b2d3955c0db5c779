"""The router's HTTP side: its own pages, error bodies, and everything else on its way to an engine and back."""

import asyncio
import itertools
from collections.abc import AsyncIterator

import httpx
import orjson
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from draftpick.engines.http.client import EngineClient
from draftpick.router.config.router_config import RouterConfig
from draftpick.router.config.sections import KeysConfig
from draftpick.router.http.app import RouterApp
from draftpick.router.http.auth import Keyring
from draftpick.router.request.decision import DecisionMaker
from draftpick.router.request.meter import Meter
from tests.fleet import CHAT, COMPLETIONS, FAST, MODEL, REFUSING_URL, RESPONSES, Owned, Servers, StartRouter, asked

pytestmark = pytest.mark.asyncio(loop_scope="module")

STRANGE = b'{ "model":"mock-model", "x":{"y":[1.50,1e2,123456789012345678901234567890]},"z":"\xc3\xa9",%s }'
ONE = {"a": FAST}
OPENAI_ERROR = {"message", "type", "param", "code"}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what came: method, path and query as sent, headers, body."""
    request = Request(scope, receive)
    came = {
        "method": scope["method"],
        "target": (scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")).decode(),
        "headers": dict(request.headers),
        "body": (await request.body()).decode(),
    }
    answer = Response(orjson.dumps(came), 201, {"x-engine": "yes", "keep-alive": "timeout=5", "etag": '"1"'})
    answer.set_cookie("one", "1")
    answer.set_cookie("two", "2")
    await answer(scope, receive, send)


# --- the router's own pages ---


async def test_health_and_models_come_from_the_router(router_app: StartRouter) -> None:
    app = await router_app({"a": REFUSING_URL}, model="the-target")
    assert (await app.client.get("/health")).json() == {"status": "ok"}
    models = (await app.client.get("/v1/models")).json()
    assert models["object"] == "list"
    assert [(model["id"], model["object"]) for model in models["data"]] == [("the-target", "model")]
    assert app.num_attempts == 0


async def test_ready_says_whether_an_engine_is_there(router_app: StartRouter) -> None:
    app = await router_app({"a": REFUSING_URL})
    there = await app.client.get("/ready")
    app.replicas.update("a", [])
    gone = await app.client.get("/ready")
    assert (there.status_code, there.json()["ready"]) == (200, True)
    assert (gone.status_code, gone.json()["ready"]) == (503, False)
    assert (await app.client.get("/health")).status_code == 200


async def test_lifespan_starts_and_stops_the_router(router_app: StartRouter) -> None:
    parts, config = (await router_app({"a": REFUSING_URL})).parts, RouterConfig(default_engine="a")
    owner = Owned(parts, EngineClient(first_byte_timeout_s=1, timeout_s=1))
    steps = owner.steps

    async def receive() -> Message:
        return {"type": "lifespan.shutdown" if steps else "lifespan.startup"}

    async def send(message: Message) -> None:
        steps.append(message["type"])

    app = RouterApp(parts, model=MODEL, config=config, owner=owner, keys=Keyring(KeysConfig(), {}))
    await app({"type": "lifespan"}, receive, send)
    assert steps == ["start", "lifespan.startup.complete", "stop", "lifespan.shutdown.complete"]


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_that_has_no_body_has_no_length(router_app: StartRouter, servers: Servers, status: int) -> None:
    app = await router_app({"a": (await servers.serve(Response(status_code=status))).url}, paths=["/x"])
    answer = await app.client.delete("/x")
    assert (answer.status_code, answer.content) == (status, b"")
    assert answer.headers.keys().isdisjoint(("content-length", "transfer-encoding"))


async def test_an_error_of_the_router_itself_is_an_openai_error_counted_and_logged_once(
    router_app: StartRouter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("never told")

    monkeypatch.setattr(DecisionMaker, "__call__", fails)
    app = await router_app(ONE)
    for _ in range(3):
        answer = await app.post()
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        assert "never told" not in answer.text
    assert app.parts.metrics.failures["http", "ZeroDivisionError"] == 3
    assert caplog.text.count("http failed") == 1


async def test_an_attempt_that_fails_by_the_routers_code_is_nobody_elses_fault(
    router_app: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Meter, "observe_body", fails)
    app = await router_app(ONE)
    assert (await app.post()).status_code == 500
    (record,) = await app.records(1)
    assert (record.outcome.status, record.outcome.fault) == ("router_error", "router")
    assert set(app.replicas.health()["a"].values()) == {"closed"}


# --- what cannot be read ---


async def test_a_body_that_is_too_large_is_refused(router_app: StartRouter) -> None:
    app = await router_app(ONE, max_body_bytes=1024)
    frame = len(orjson.dumps(asked(text="")))
    fits = await app.client.post(CHAT, content=orjson.dumps(asked(text="x" * (1024 - frame))))
    larger = await app.client.post(CHAT, content=orjson.dumps(asked(text="x" * (1025 - frame))))
    assert fits.status_code == 200
    assert larger.status_code == 413
    assert larger.json()["error"] == {
        "message": "the body is larger than 1024 bytes",
        "type": "invalid_request_error",
        "param": None,
        "code": "body_too_large",
    }
    assert app.num_attempts == 1


async def test_a_body_that_is_no_json_object_is_refused(router_app: StartRouter) -> None:
    app = await router_app(ONE)
    for path, body in itertools.product((CHAT, COMPLETIONS, RESPONSES), (b"{", b"", b"[1]", b"\xff")):
        answer = await app.client.post(path, content=body)
        assert answer.status_code == 400
        assert answer.headers["content-type"] == "application/json"
        assert set(answer.json()["error"]) == OPENAI_ERROR
        assert answer.json()["error"]["code"] == "invalid_json"
    assert await app.records(0) == []


# --- requests reach the engine as they came ---


@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        (CHAT, b'"messages":[{"role":"user","content":"x"}]'),
        (COMPLETIONS, b'"prompt":"x"'),
        (RESPONSES, b'"input":"x"'),
    ],
)
async def test_a_body_reaches_the_engine_byte_for_byte(router_app: StartRouter, path: str, prompt: bytes) -> None:
    app = await router_app(ONE)
    body = STRANGE % prompt
    answer = await app.client.post(path, content=body)
    assert answer.status_code == 200
    assert app.engines["a"].last_body == body


async def test_a_streamed_body_reaches_the_engine_but_for_the_question_for_usage(router_app: StartRouter) -> None:
    app = await router_app(ONE)
    body = STRANGE % b'"stream": true,"messages":[{"role":"user","content":"x"}]'
    await app.client.post(CHAT, content=body)
    end = body.rindex(b"}")
    spliced = b',"stream_options":{"include_usage":true}'
    assert app.engines["a"].last_body == body[:end] + spliced + body[end:]


async def test_a_body_that_comes_in_parts_is_put_together(router_app: StartRouter) -> None:
    app = await router_app(ONE)
    body = orjson.dumps(asked(text="x" * 1000))

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100):
            yield body[start : start + 100]
            await asyncio.sleep(0)

    assert (await app.client.post(CHAT, content=parts())).status_code == 200
    assert app.engines["a"].last_body == body


async def test_headers_reach_the_engine_but_for_those_of_the_connection(
    router_app: StartRouter, servers: Servers
) -> None:
    engine = await servers.serve(echo)
    app = await router_app({"a": engine.url}, tracing={}, paths=["*"])
    sent = {"authorization": "Bearer s", "x-mine": "1", "traceparent": "00-1-2-03", "user-agent": "mine/1"}
    dropped = {
        **{"te": "trailers", "upgrade": "h2c", "accept-encoding": "br", "x-draftpick-profiling": "1"},
        **{"cookie": "a=b", "x-api-key": "dp-k", "x-data-parallel-rank": "3", "x-forwarded-for": "1.2.3.4"},
        **{"proxy-connection": "keep-alive", "connection": "close, X-Hop", "x-hop": "1", "x-draftpick-timeout": "9"},
    }
    answer = await app.client.post("/x", content=b"{}", headers=sent | dropped | {"x-request-id": "mine-1"})
    came = answer.json()["headers"]
    assert (
        came["x-request-id"] == answer.headers["x-request-id"] == answer.headers["x-draftpick-request-id"] == "mine-1"
    )
    assert sent.items() <= came.items()
    assert came["host"] == engine.url.removeprefix("http://")
    assert not dropped.keys() & came.keys()


async def test_headers_come_back_but_for_those_of_the_connection(router_app: StartRouter, servers: Servers) -> None:
    app = await router_app({"a": (await servers.serve(echo)).url}, paths=["*"])
    answer = await app.client.get("/x")
    assert answer.status_code == 201
    assert (answer.headers["x-engine"], answer.headers["etag"]) == ("yes", '"1"')
    assert answer.headers.get_list("set-cookie") == ["one=1; Path=/; SameSite=lax", "two=2; Path=/; SameSite=lax"]
    assert "keep-alive" not in answer.headers
    for name in ("date", "server", "content-length"):
        assert len(answer.headers.get_list(name)) == 1


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
async def test_other_paths_reach_an_engine_with_method_query_and_body(
    router_app: StartRouter, servers: Servers, method: str
) -> None:
    app = await router_app({"a": (await servers.serve(echo)).url}, paths=["*"])
    body = b"\x01 not json" if method in ("POST", "PUT", "PATCH") else b""
    answer = await app.client.request(method, "/v1/files/x?a=1&a=2&b=", content=body)
    came = answer.json()
    assert (came["method"], came["target"], came["body"]) == (method, "/v1/files/x?a=1&a=2&b=", body.decode())
    assert answer.headers["x-draftpick-arm"] == "a"


async def test_small_pages_of_the_engine_pass_through(router_app: StartRouter) -> None:
    app = await router_app(ONE, paths=["*"])
    assert (await app.client.get("/version")).json() == {"version": "mock"}
    tokens = await app.client.post("/tokenize", json={"prompt": "one two"})
    async with httpx.AsyncClient(base_url=app.engines["a"].url) as direct:
        assert tokens.content == (await direct.post("/tokenize", json={"prompt": "one two"})).content
    assert (await app.client.get("/nowhere")).status_code == 404
    assert [(one.path, one.outcome.status) for one in await app.records(3)] == [
        ("/version", "ok"),
        ("/tokenize", "ok"),
        ("/nowhere", "client_error"),
    ]


# --- answers say who made them ---


async def test_an_answer_names_arm_policy_and_request(router_app: StartRouter) -> None:
    app = await router_app(ONE)
    for stream in (False, True):
        answer = await app.post(stream=stream, headers={"x-request-id": f"r-{stream}"})
        assert answer.headers["x-draftpick-arm"] == "a"
        assert answer.headers["x-draftpick-policy"] == "fixed:a"
        assert answer.headers["x-draftpick-request-id"] == f"r-{stream}"
    records = await app.records(2)
    assert [one.client_request_id for one in records] == ["r-False", "r-True"]


async def test_requests_of_one_client_id_stay_apart_in_the_records(router_app: StartRouter) -> None:
    app = await router_app(ONE)
    for _ in range(3):
        await app.post(headers={"x-request-id": "session"})
    records = await app.records(3)
    assert {one.client_request_id for one in records} == {"session"}
    assert len({one.request_id for one in records}) == 3


async def test_what_is_refused_at_the_door_has_the_clients_id(router_app: StartRouter) -> None:
    app = await router_app(ONE)
    for id, given in (("mine-1", True), ("not fit for logs", False)):
        answer = await app.client.request("PURGE", "/v1/chat/completions", headers={"x-request-id": id})
        assert answer.status_code == 405
        assert (answer.headers["x-request-id"] == id) is given
        assert answer.headers["x-request-id"] == answer.headers["x-draftpick-request-id"]


async def test_a_request_without_an_id_gets_one(router_app: StartRouter) -> None:
    app = await router_app(ONE)
    given = [(await app.post()).headers["x-draftpick-request-id"] for _ in range(3)]
    assert len({one for one in given if len(one) == 32}) == 3
    assert [one.request_id for one in await app.records(3)] == given
    assert [one.client_request_id for one in await app.records(3)] == [None] * 3
