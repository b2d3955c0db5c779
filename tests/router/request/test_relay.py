"""What a client gets before an engine's first content, and the bounds of what is held."""

import asyncio

import orjson
import pytest
from starlette.types import Receive, Scope, Send

from tests.fleet import CHAT, FAILS, FAST, REFUSING_URL, Servers, StartRouter, asked
from tests.router.request.test_faults import CONTENT, answering, story

pytestmark = pytest.mark.asyncio(loop_scope="module")

DONE = b"data: [DONE]\n\n"


async def slow_start(servers: Servers, *parts: bytes, pause_s: float = 0.0, breaks: bool = False) -> str:
    """The address of an engine that sends headers, and after `pause_s` each the parts of a stream."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for part in parts:
            await asyncio.sleep(pause_s)
            await send({"type": "http.response.body", "body": part, "more_body": True})
        if not breaks:
            await send({"type": "http.response.body", "body": b""})

    return (await servers.serve(app)).url


async def test_comments_reach_the_client_before_the_first_content(router_app: StartRouter, servers: Servers) -> None:
    parts = [b": wait\n\n", b": wait\r\n\r\n", CONTENT + b"\n\n" + DONE]
    app = await router_app({"a": await slow_start(servers, *parts, pause_s=0.2)})
    async with app.client.stream("POST", CHAT, json=asked(stream=True)) as answer:
        assert [part async for part in answer.aiter_raw()] == parts


async def test_headers_reach_the_client_while_the_engine_is_silent(router_app: StartRouter, servers: Servers) -> None:
    app = await router_app({"a": await slow_start(servers, CONTENT + b"\n\n" + DONE, pause_s=1.5)})
    before = asyncio.get_running_loop().time()
    async with app.client.stream("POST", CHAT, json=asked(stream=True)) as answer:
        assert asyncio.get_running_loop().time() - before < 1.2
        assert b"".join([part async for part in answer.aiter_raw()]) == CONTENT + b"\n\n" + DONE


async def test_another_engine_still_answers_and_is_named(router_app: StartRouter, servers: Servers) -> None:
    app = await router_app({"a": await slow_start(servers, b": wait\n\n", breaks=True), "b": FAST})
    answer = await app.post(stream=True)
    assert answer.headers["x-draftpick-arm"] == "a"
    assert answer.content.startswith(b": wait\n\n: x-draftpick-arm: b\n: x-draftpick-attempts: 2\n\ndata: ")
    assert answer.content.endswith(DONE)
    assert story(await app.records(2)) == [(1, "a", "broken"), (2, "b", "ok")]


@pytest.mark.parametrize("second", ["refusing", "failing", "none"])
async def test_an_error_after_a_comment_is_an_event(router_app: StartRouter, servers: Servers, second: str) -> None:
    opens = await slow_start(servers, b": wait\n\n", breaks=True)
    others = {"refusing": {"b": REFUSING_URL}, "failing": {"b": FAILS}, "none": {}}[second]
    app = await router_app({"a": opens, **others}, wait_for_engine_s=0)
    answer = await app.post(stream=True)
    assert answer.status_code == 200
    comment, event = answer.content.split(b"\n\n", 1)
    assert comment == b": wait"
    assert orjson.loads(event.removeprefix(b"data: "))["error"]["message"]


async def test_an_error_event_keeps_its_status_if_it_comes_at_once(router_app: StartRouter, servers: Servers) -> None:
    told = b'data: {"error":{"message":"bad grammar","type":"BadRequestError","param":null,"code":400}}\n\n' + DONE
    app = await router_app({"a": await answering(servers, told)})
    answer = await app.post(stream=True)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "bad grammar")


async def test_a_long_answer_is_passed_on_unread(router_app: StartRouter, servers: Servers) -> None:
    long = orjson.dumps({"choices": [{"text": "x" * 200_000}]})
    app = await router_app({"a": await answering(servers, long, "application/json")}, max_answer_bytes=2**16)
    assert (await app.post()).content == long


async def test_an_endless_event_ends_with_an_error(router_app: StartRouter, servers: Servers) -> None:
    parts = [CONTENT + b"\n\ndata: ", *[b"x" * 50_000] * 3]
    app = await router_app({"a": await slow_start(servers, *parts, pause_s=0.01)}, max_answer_bytes=2**16)
    answer = await app.post(stream=True)
    assert answer.content.startswith(CONTENT)
    assert len(answer.content) < 1000
    assert b'"error"' in answer.content


async def test_where_nothing_answers_clients_are_told_when_to_come_back(router_app: StartRouter) -> None:
    app = await router_app({"a": REFUSING_URL}, wait_for_engine_s=0)
    answers = [await app.post() for _ in range(2)]
    assert [answer.status_code for answer in answers] == [502, 503]
    assert all(answer.headers["retry-after"] == "1" for answer in answers)
    assert all(answer.headers["x-request-id"] for answer in answers)


async def test_a_client_of_http_1_0_gets_a_stream_whole(router_app: StartRouter, servers: Servers) -> None:
    app = await router_app({"a": await answering(servers, CONTENT + b"\n\n" + DONE)})
    body = orjson.dumps(asked(stream=True))
    host, port = app.server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST %b HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
    head, sent = (await reader.read()).split(b"\r\n\r\n", 1)
    writer.close()
    assert b"chunked" not in head
    assert sent == CONTENT + b"\n\n" + DONE


async def test_head_of_own_pages_has_no_body(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST})
    for page in ("/health", "/ready", "/v1/models", "/ui/"):
        answer = await app.client.head(page)
        assert (answer.status_code, answer.content) == (200, b"")


async def test_no_websocket_is_accepted_behind_other_servers(router_app: StartRouter) -> None:
    app, sent = await router_app({"a": FAST}), []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: object) -> None:
        sent.append(message)

    await app.server._app({"type": "websocket"}, receive, send)  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close"}]
