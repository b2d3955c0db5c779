"""`/v1/messages` as Anthropic's clients expect it: key, errors, broken streams, measurements; and `/v1/models`."""

from collections.abc import AsyncIterator

import orjson
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from draftpick.router.features.featurizer import LexicalFeaturizer
from draftpick.router.http.auth import digest
from draftpick.router.policies.baselines import FixedPolicy
from tests.fleet import CHAT, COMPLETIONS, FAST, REFUSING_URL, Servers, StartRouter

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGES = "/v1/messages"
BODY = {"model": "mock-model", "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]}


def event(kind: str, **fields: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


START = event("message_start", message={"id": "m", "usage": {"input_tokens": 5, "output_tokens": 0}})
CONTENT = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hel"})
END = event("message_delta", delta={}, usage={"output_tokens": 3}) + event("message_stop")


def engine(*events: bytes, headers: list[dict[str, str]] | None = None) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if headers is not None:
            headers.append(dict(Request(scope).headers))

        async def stream() -> AsyncIterator[bytes]:
            for one in events:
                yield one

        await StreamingResponse(stream(), media_type="text/event-stream")(scope, receive, send)

    return app


async def test_a_stream_of_messages_is_measured(router_app: StartRouter, servers: Servers) -> None:
    app = await router_app({"a": (await servers.serve(engine(START, CONTENT, END))).url})
    answer = await app.client.post(MESSAGES, json={**BODY, "stream": True})
    assert answer.content == START + CONTENT + END
    (record,) = await app.records(1)
    assert (record.stream, record.outcome.status) == (True, "ok")
    assert (record.outcome.prompt_tokens, record.outcome.output_tokens) == (5, 3)
    assert record.outcome.ttft_s is not None
    assert record.sampling == {"max_tokens": 8.0}


async def test_a_stream_of_messages_that_ends_early_ends_with_an_error(
    router_app: StartRouter, servers: Servers
) -> None:
    app = await router_app({"a": (await servers.serve(engine(START, CONTENT))).url})
    answer = await app.client.post(MESSAGES, json={**BODY, "stream": True})
    assert answer.content.startswith(START + CONTENT + b"event: error\ndata: ")
    assert orjson.loads(answer.content.rpartition(b"data: ")[2])["error"]["type"] == "api_error"


async def test_the_engines_error_in_a_stream_of_messages_is_an_answer(
    router_app: StartRouter, servers: Servers
) -> None:
    error = event("error", error={"type": "invalid_request_error", "message": "no"})
    app = await router_app({"a": (await servers.serve(engine(START, error))).url})
    answer = await app.client.post(MESSAGES, json={**BODY, "stream": True})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "no")


async def test_a_key_may_come_as_anthropics_clients_send_it(router_app: StartRouter, servers: Servers) -> None:
    seen: list[dict[str, str]] = []
    url = (await servers.serve(engine(START, CONTENT, END, headers=seen))).url
    app = await router_app({"a": url}, environment={"DRAFTPICK_API_KEYS": "dp-one"})
    body = {**BODY, "stream": True}
    for headers in ({"x-api-key": "dp-one"}, {"authorization": "Bearer dp-one", "x-api-key": "other"}):
        assert (await app.client.post(MESSAGES, json=body, headers=headers)).status_code == 200
    assert all({"x-api-key", "authorization"}.isdisjoint(one) for one in seen)
    for headers in ({"x-api-key": "dp-two"}, {}, {"authorization": "Bearer dp-two", "x-api-key": "dp-one"}):
        answer = await app.client.post(MESSAGES, json=body, headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (401, "error")
        assert answer.json()["error"]["type"] == "authentication_error"
    assert len(digest("dp-one")) == 64


class NeedsContext(FixedPolicy):
    """Chooses `b`, and only with a context."""

    def __init__(self) -> None:
        super().__init__(("a", "b"), "b")
        self.id, self.featurizer = "needs-context", LexicalFeaturizer().id


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (MESSAGES, {"messages": [{"role": "user", "content": "hi"}]}),
        (COMPLETIONS, {"prompt": [1, 2, 3]}),
        (COMPLETIONS, {"prompt": [[1, 2], [3]]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
    ],
)
async def test_every_request_for_text_is_decided_by_the_policy(
    router_app: StartRouter, path: str, fields: dict[str, object]
) -> None:
    app = await router_app({"a": FAST, "b": FAST}, policy=NeedsContext(), featurizer=LexicalFeaturizer())
    answer = await app.client.post(path, json={"model": "mock-model", **fields})
    assert answer.headers["x-draftpick-arm"] == "b"
    assert not app.parts.metrics.fallbacks["no_context"]


async def test_a_path_that_generates_no_text_is_no_fallback(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST, "b": FAST}, policy=NeedsContext(), featurizer=LexicalFeaturizer())
    assert (await app.client.post("/tokenize", json={"prompt": "x"})).headers["x-draftpick-arm"] == "a"
    assert not app.parts.metrics.fallbacks["no_context"]


# --- models ---


async def test_models_are_those_of_the_engines(router_app: StartRouter, servers: Servers) -> None:
    cards = [{"id": "lora", "object": "model", "parent": "org/x"}, {"id": "org/x", "max_model_len": 4096}]
    url = (await servers.serve(JSONResponse({"object": "list", "data": cards}))).url
    app = await router_app({"gone": REFUSING_URL, "a": url}, model="org/x")
    assert (await app.client.get("/v1/models")).json() == {"object": "list", "data": cards[::-1]}
    assert (await app.client.get("/v1/models/org/x")).json() == cards[1]
    assert (await app.client.get("/v1/models/org%2Fx")).json() == cards[1]
    missing = await app.client.get("/v1/models/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert app.num_attempts == 0
