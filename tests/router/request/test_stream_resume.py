"""Streams that break are continued by another engine, where the rest is the same answer."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from draftpick.router.openai_request import parse
from draftpick.router.policies.baselines import FixedPolicy
from draftpick.router.request.stream_resume import StreamResume
from tests.fleet import CHAT, COMPLETIONS, MODEL, RESPONSES, Servers, StartRouter, asked

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORDS = [f"w{i} " for i in range(12)]
"""The one answer that the engines below give: a token a word."""


def engine(
    seen: list[dict[str, Any]], breaks_after: int | None = None, counts: bool = True, step_s: float = 0.001
) -> ASGIApp:
    """An engine that answers `WORDS`, or goes on with them; it counts words, and may break after some of them."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        http = HttpRequest(scope, receive)
        body = orjson.loads(await http.body())
        if http.url.path == "/tokenize":
            answer = {"count": len(body["prompt"].split())} if counts else {"detail": "not here"}
            await JSONResponse(answer)(scope, receive, send)
            return
        seen.append(body)
        said = body["messages"][-1]["content"] if "messages" in body else body["prompt"].removeprefix("Say.")
        done = len(said.split()) if body.get("continue_final_message") or "prompt" in body else 0
        last = min(len(WORDS), done + int(body.get("max_tokens", 100)))
        await StreamingResponse(events(body, done, last), media_type="text/event-stream")(scope, receive, send)

    async def events(body: dict[str, Any], done: int, last: int) -> AsyncIterator[bytes]:
        chat = "messages" in body
        if chat:
            yield event(delta={"role": "assistant", "content": ""})
        for number in range(done, last):
            if number - done == breaks_after:
                raise OSError("cut")
            yield event(delta={"content": WORDS[number]}) if chat else event(text=WORDS[number])
            await asyncio.sleep(step_s)
        yield event(**({"delta": {}} if chat else {"text": ""}), finish_reason="length")
        usage = {"prompt_tokens": 5 + done, "completion_tokens": last - done, "total_tokens": 5 + last}
        yield b"data: " + orjson.dumps({"id": "x", "choices": [], "usage": usage}) + b"\n\ndata: [DONE]\n\n"

    return app


def event(**choice: Any) -> bytes:
    chunk = {"id": "x", "choices": [{"index": 0, "finish_reason": None, **choice}]}
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


async def ask(app: Any, api: str, **fields: Any) -> tuple[str, list[dict[str, Any]]]:
    """(text, chunks) of a greedy stream."""
    body = {"stream": True, "temperature": 0, **fields}
    prompt = {"prompt": "Say."} if api == COMPLETIONS else {}
    answer = await app.client.post(api, json={**asked(api), **prompt, **body})
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    chunks = [orjson.loads(line) for line in lines if line != "[DONE]"]
    choices = [one for chunk in chunks for one in chunk.get("choices", ())]
    return "".join(one.get("text") or one.get("delta", {}).get("content") or "" for one in choices), chunks


@pytest.mark.parametrize("api", [CHAT, COMPLETIONS])
async def test_another_engine_goes_on(router_app: StartRouter, servers: Servers, api: str) -> None:
    first: list[dict[str, Any]] = []
    rest: list[dict[str, Any]] = []
    urls = {"a": (await servers.serve(engine(first, 4))).url, "b": (await servers.serve(engine(rest))).url}
    app = await router_app(urls, policy=FixedPolicy(("a", "b"), "a"), resume_streams=True)
    text, chunks = await ask(app, api, max_tokens=9, stream_options={"include_usage": True})
    assert text == "".join(WORDS[:9])
    roles = [one for chunk in chunks for one in chunk["choices"] if one.get("delta", {}).get("role")]
    assert len(roles) == (api == CHAT)
    assert chunks[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
    assert rest[0]["max_tokens"] == 5
    if api == CHAT:
        assert rest[0]["messages"][-1] == {"role": "assistant", "content": "".join(WORDS[:4])}
        assert (rest[0]["continue_final_message"], rest[0]["add_generation_prompt"]) == (True, False)
    records = await app.records(2)
    assert [(one.attempt, one.decision.arm, one.decision.reason, one.outcome.status) for one in records] == [
        (1, "a", "policy", "broken"),
        (2, "b", "resumed", "ok"),
    ]


@pytest.mark.parametrize("limits", [{"max_tokens": "9"}, {"max_tokens": 99, "max_completion_tokens": 9}])
async def test_the_rest_obeys_the_limit_as_the_engine_reads_it(
    router_app: StartRouter, servers: Servers, limits: dict[str, Any]
) -> None:
    rest: list[dict[str, Any]] = []
    urls = {"a": (await servers.serve(engine([], 4))).url, "b": (await servers.serve(engine(rest))).url}
    app = await router_app(urls, policy=FixedPolicy(("a", "b"), "a"), resume_streams=True)
    await app.client.post(CHAT, json=asked(CHAT) | {"stream": True, "temperature": 0} | limits)
    assert {name: rest[0].get(name) for name in limits} == {"max_tokens": 5} | dict.fromkeys(
        limits.keys() - {"max_tokens"}
    )


@pytest.mark.parametrize(("written", "instead"), [(b"data: ", b"data:"), (b"\n", b"\r\n"), (b'{"', b'{\ndata: "')])
async def test_the_text_so_far_is_read_in_every_form(
    router_app: StartRouter, servers: Servers, written: bytes, instead: bytes
) -> None:
    rest: list[dict[str, Any]] = []
    cut = b"".join(event(delta={"content": word}) for word in WORDS[:4]).replace(written, instead)
    urls = {
        "a": (await servers.serve(Response(cut, media_type="text/event-stream"))).url,
        "b": (await servers.serve(engine(rest))).url,
    }
    app = await router_app(urls, policy=FixedPolicy(("a", "b"), "a"), resume_streams=True)
    await app.client.post(CHAT, json=asked(CHAT) | {"stream": True, "temperature": 0})
    assert rest[0]["messages"][-1] == {"role": "assistant", "content": "".join(WORDS[:4])}


@pytest.mark.parametrize("odd", [{"delta": 5}, {"delta": {"content": 5}}, {"text": ["x"]}])
async def test_content_that_is_no_text_cannot_be_continued(
    router_app: StartRouter, servers: Servers, odd: dict[str, Any]
) -> None:
    cut = event(delta={"content": WORDS[0]}) + event(**odd)
    urls = {
        "a": (await servers.serve(Response(cut, media_type="text/event-stream"))).url,
        "b": (await servers.serve(engine([]))).url,
    }
    app = await router_app(urls, policy=FixedPolicy(("a", "b"), "a"), resume_streams=True)
    answer = await app.client.post(CHAT, json=asked(CHAT) | {"stream": True, "temperature": 0})
    assert answer.content.startswith(cut)
    assert b"error" in answer.content.removeprefix(cut)


async def test_it_may_break_again_and_again(router_app: StartRouter, servers: Servers) -> None:
    urls = {name: (await servers.serve(engine([], 4 if name != "c" else None))).url for name in "abc"}
    app = await router_app(urls, policy=FixedPolicy(("a", "b", "c"), "a"), resume_streams=True)
    text, chunks = await ask(app, CHAT)
    assert text == "".join(WORDS)
    assert all("error" not in chunk for chunk in chunks)
    await app.records(3)


@pytest.mark.parametrize(
    "fields",
    [{"temperature": 0.7}, {"logprobs": True}, {"tools": [{"type": "function"}]}, {"n": 2}, {"min_tokens": 3}],
)
async def test_what_could_go_on_otherwise_ends_with_an_error(
    router_app: StartRouter, servers: Servers, fields: dict[str, Any]
) -> None:
    urls = {"a": (await servers.serve(engine([], 4))).url, "b": (await servers.serve(engine([]))).url}
    app = await router_app(urls, policy=FixedPolicy(("a", "b"), "a"), resume_streams=True)
    text, chunks = await ask(app, CHAT, **fields)
    assert text == "".join(WORDS[:4])
    assert chunks[-1]["error"]["code"] == "engine_broken"
    await app.records(1)


async def test_it_is_off_by_default(router_app: StartRouter, servers: Servers) -> None:
    urls = {"a": (await servers.serve(engine([], 4))).url, "b": (await servers.serve(engine([]))).url}
    app = await router_app(urls, policy=FixedPolicy(("a", "b"), "a"))
    _, chunks = await ask(app, CHAT)
    assert chunks[-1]["error"]["code"] == "engine_broken"


async def test_an_engine_that_counts_no_tokens_cannot_go_on(router_app: StartRouter, servers: Servers) -> None:
    urls = {"a": (await servers.serve(engine([], 4))).url, "b": (await servers.serve(engine([], counts=False))).url}
    app = await router_app(urls, policy=FixedPolicy(("a", "b"), "a"), resume_streams=True)
    _, chunks = await ask(app, CHAT)
    assert [chunk for chunk in chunks if "error" in chunk] == [chunks[-1]]
    assert [one.outcome.status for one in await app.records(2)] == ["broken", "router_error"]


@pytest.mark.parametrize(("http_status", "status"), [(400, "router_error"), (200, "broken")])
async def test_what_is_no_stream_is_not_the_rest_of_one(
    router_app: StartRouter, servers: Servers, http_status: int, status: str
) -> None:
    async def other(scope: Scope, receive: Receive, send: Send) -> None:
        answer = JSONResponse({"count": 4}) if scope["path"] == "/tokenize" else JSONResponse({}, http_status)
        await answer(scope, receive, send)

    urls = {"a": (await servers.serve(engine([], 4))).url, "b": (await servers.serve(other)).url}
    app = await router_app(urls, policy=FixedPolicy(("a", "b"), "a"), resume_streams=True)
    _, chunks = await ask(app, CHAT)
    assert chunks[-1]["error"]["code"] == "engine_broken"
    assert [one.outcome.status for one in await app.records(2)] == ["broken", status]


async def test_a_pinned_stream_does_not_go_on(router_app: StartRouter, servers: Servers) -> None:
    urls = [(await servers.serve(engine([], 4))).url for _ in range(2)]
    app = await router_app({"a": urls[0], "b": (await servers.serve(engine([]))).url}, resume_streams=True)
    app.replicas.update("a", urls)
    body = {**asked(), "stream": True, "temperature": 0}
    answer = await app.client.post(CHAT, json=body, headers={"x-draftpick-arm": "a"})
    assert b"engine_broken" in answer.content
    await app.records(1)


async def test_a_deadline_for_the_first_byte_does_not_end_the_rest(router_app: StartRouter, servers: Servers) -> None:
    slow = engine([], 4, step_s=0.3)
    urls = {"a": (await servers.serve(slow)).url, "b": (await servers.serve(engine([]))).url}
    app = await router_app(urls, policy=FixedPolicy(("a", "b"), "a"), resume_streams=True)
    body = {**asked(), "stream": True, "temperature": 0}
    answer = await app.client.post(CHAT, json=body, headers={"x-draftpick-timeout": "1"})
    assert b"[DONE]" in answer.content


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (RESPONSES, {"input": "x"}),
        (COMPLETIONS, {"prompt": [1, 2]}),
        (CHAT, {"messages": [{"role": "assistant", "content": "x"}]}),
        (CHAT, {"messages": []}),
        (CHAT, {"messages": ["x"]}),
        (CHAT, {}),
    ],
)
async def test_requests_that_cannot_be_continued(path: str, body: dict[str, Any]) -> None:
    whole = {"model": MODEL, "stream": True, "temperature": 0, **body}
    assert StreamResume.from_request(parse(path, orjson.dumps(whole))) is None
