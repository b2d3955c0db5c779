"""What a client gets before an engine's first content, and the bounds of what is held."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
import pytest
from starlette.types import Receive, Scope, Send

from draftpick.engines.errors import StreamInterrupted
from draftpick.engines.replicas import Lease, Replica
from draftpick.router.openai_request import Request
from draftpick.router.request.meter import Meter
from draftpick.router.request.relay import Relay
from draftpick.router.request.state import ClientRequest, RequestState
from draftpick.router.request.verdict import Verdict
from draftpick.router.types import Decision
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
    others: dict[str, Any] = {"refusing": {"b": REFUSING_URL}, "failing": {"b": FAILS}, "none": {}}
    app = await router_app({"a": opens, **others[second]}, wait_for_engine_s=0)
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

    await app.server._app({"type": "websocket"}, receive, send)
    assert sent == [{"type": "websocket.close"}]


# --- without a network ---

COMPLETIONS = "/v1/completions"
EVENTS, JSON = "text/event-stream; charset=utf-8", "application/json"
ERROR = b'data: {"error":{"message":"no","code":%d}}\n\n'
WORD = b'data: {"choices":[{"text":"x"}]}\n\n'
EMPTY = b'data: {"choices":[{"text":""}]}\n\n'


class Chunks:
    """The parts of an engine's answer; `late`: the first one takes longer than the router waits with its headers."""

    arrived_at, received, first_pause = 0.0, 0, None

    def __init__(self, parts: Sequence[bytes], *, late: bool = False) -> None:
        self._parts, self._late, self.waited_s = iter(parts), late, list[float]()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for part in self._parts:
            return part
        raise StopAsyncIteration

    async def arrives_within(self, seconds: float) -> bool:
        self.waited_s.append(seconds)
        return not self._late


class Sink:
    """What a client gets: `sent` has statuses and data in order."""

    def __init__(self) -> None:
        self.sent, self.headers = list[Any](), dict[str, str]()

    async def start(self, status: int, headers: Any) -> None:
        self.sent.append(status)
        self.headers = dict(headers)

    async def write(self, data: bytes) -> None:
        self.sent.append(data)

    async def send_complete(self, status: int, headers: Any, body: bytes) -> None:
        await self.start(status, headers)
        await self.write(body)


class Relayed:
    """One answer on its way: `verdict`, what was `sent`, and the verdicts for which another engine was asked for."""

    def __init__(self, path: str = COMPLETIONS, *, stream: bool = True, again: bool = False, **state: Any) -> None:
        self.sink, self.meter, self.again, self.asked = Sink(), Meter(0.0), again, list[tuple[Verdict, bytes]]()
        request = ClientRequest(
            Request(path, b"", "", stream=stream),
            "POST",
            path,
            [],
            "id",
            "id",
            0.0,
            show_routing=state.pop("shown", True),
        )
        self.state = RequestState(request, decision=Decision("a", 1.0, {"a": 1.0}, "p"), **state)

    def _try_again(self, verdict: Verdict, body: bytes) -> bool:
        self.asked.append((verdict, body))
        return self.again

    async def run(
        self,
        *parts: bytes,
        status: int = 200,
        kind: str = EVENTS,
        late: bool = False,
        max_bytes: int = 10_000,
        **headers: str,
    ) -> Verdict:
        self.chunks = Chunks(parts, late=late)
        sent = [("content-type", kind), *((name.replace("_", "-"), value) for name, value in headers.items())]
        answer: Any = type("Answer", (), {"status": status, "headers": sent, "chunks": self.chunks})
        given = (self.state, answer, "http://a", self.sink, self.meter, self._try_again)
        return await Relay(*given, max_bytes=max_bytes).run()


async def test_a_stream_opens_with_its_content_and_names_its_engine() -> None:
    relayed = Relayed()
    verdict = await relayed.run(EMPTY, WORD, WORD + DONE, age="5", vary="x")
    assert relayed.sink.sent == [200, EMPTY + WORD, WORD + DONE]
    assert (verdict.status, relayed.state.started, relayed.state.opened_by) == ("ok", True, 1)
    assert relayed.sink.headers == {
        "content-type": EVENTS, "x-draftpick-request-id": "id", "x-request-id": "id", "x-draftpick-attempts": "1",
        "x-draftpick-arm": "a", "x-draftpick-policy": "p", "age": "5", "vary": "x",
    }  # fmt: skip
    assert relayed.chunks.waited_s == [0.5]
    hidden = Relayed(shown=False)
    await hidden.run(WORD + DONE)
    assert {"x-draftpick-arm", "x-draftpick-policy"}.isdisjoint(hidden.sink.headers)


async def test_a_silent_engine_opens_a_stream_ahead_of_its_content() -> None:
    relayed = Relayed()
    await relayed.run(WORD + DONE, late=True)
    assert relayed.sink.sent == [200, WORD + DONE]
    opened = Relayed(opened_by=1, number=2)
    await opened.run(WORD + DONE)
    assert opened.chunks.waited_s == []
    assert opened.sink.sent == [b": x-draftpick-arm: a\n: x-draftpick-attempts: 2\n\n", WORD + DONE]
    hidden = Relayed(opened_by=1, number=2, shown=False)
    await hidden.run(WORD + DONE)
    assert hidden.sink.sent == [WORD + DONE]


@pytest.mark.parametrize(("size", "held"), [(2**16 - 1, True), (2**16, False)])
async def test_so_much_is_held_before_the_content(size: int, held: bool) -> None:
    relayed, padded = Relayed(), EMPTY[:-2] + b" " * (size - len(EMPTY)) + b"\n\n"
    with pytest.raises(StreamInterrupted, match="without its terminator"):
        await relayed.run(padded, max_bytes=2**20)
    assert relayed.sink.sent == ([] if held else [200, padded])


async def test_a_stream_that_ends_without_content_is_an_answer() -> None:
    relayed = Relayed()
    assert (await relayed.run(EMPTY + DONE)).status == "ok"
    assert relayed.sink.sent == [200, EMPTY + DONE]
    assert relayed.state.started


async def test_what_is_no_generated_text_needs_neither_content_nor_end() -> None:
    relayed = Relayed("/tokenize")
    assert (await relayed.run(EMPTY, b"data: half")).status == "ok"
    assert relayed.sink.sent == [200, EMPTY, b"data: half"]


@pytest.mark.parametrize("again", [False, True])
async def test_an_error_event_ahead_of_the_content_is_an_answer_of_its_own(again: bool) -> None:
    relayed = Relayed(again=again)
    verdict = await relayed.run(EMPTY, ERROR % 503, age="5", vary="x")
    assert (verdict.status, verdict.retry) == ("engine_error", again)
    assert [one.fault for one, _ in relayed.asked] == ["engine"]
    assert relayed.meter.http_status == 503
    if again:
        assert relayed.sink.sent == []
        assert not relayed.state.started
    else:
        assert relayed.sink.sent == [503, ERROR[6:-2] % 503]
        assert [relayed.sink.headers[name] for name in ("content-type", "age", "vary")] == [JSON, "5", "x"]


@pytest.mark.parametrize(("code", "fault"), [(400, "client"), (500, "engine")])
async def test_an_error_event_after_the_content_breaks_the_stream(code: int, fault: str) -> None:
    relayed = Relayed()
    verdict = await relayed.run(WORD, ERROR % code)
    assert (verdict.status, verdict.fault) == ("broken", fault)
    assert relayed.sink.sent == [200, WORD, ERROR % code]
    assert relayed.asked == []


@pytest.mark.parametrize(
    ("status", "retry", "asked"), [(503, True, 2), (500, True, 2), (404, False, 1), (400, False, 1)]
)
async def test_an_error_is_passed_on_if_no_other_engine_is_to_answer(status: int, retry: bool, asked: int) -> None:
    """Asked first before its body is read, so that nothing waits for it, and then with the body."""
    relayed = Relayed(stream=False)
    verdict = await relayed.run(b'{"error":', b"{}}", status=status, kind=JSON)
    assert [body for _, body in relayed.asked] == [b"", b'{"error":{}}'][-asked:]
    assert (verdict.retry, relayed.state.started) == (False, True)
    assert relayed.sink.sent == [status, b'{"error":{}}']
    other = Relayed(stream=False, again=True)
    assert (await other.run(b"{}", status=status, kind=JSON)).retry is True
    assert [body for _, body in other.asked] == [b"" if retry else b"{}"]
    assert other.sink.sent == []


@pytest.mark.parametrize(("status", "verdict"), [(400, "router_error"), (503, "engine_error")])
async def test_an_error_while_a_stream_is_resumed_is_kept_from_the_client(status: int, verdict: str) -> None:
    relayed = Relayed(started=True, opened_by=1, number=2)
    found = await relayed.run(b"{}", status=status, kind=JSON)
    assert (found.status, found.retry) == (verdict, True)
    assert relayed.sink.sent == []
    assert relayed.asked == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (COMPLETIONS, b'{"error":{"code":429}}', 429),
        (COMPLETIONS, b'{"error":{"message":"x"}}', 500),
        (COMPLETIONS, b'{"error":{"code":429},"choices":[]}', 200),
        ("/v1/responses", b'{"error":{"code":429},"output":[]}', 200),
        ("/v1/messages", b'{"error":{"code":429},"content":[]}', 200),
        (COMPLETIONS, b'{"error":null}', 200),
        (COMPLETIONS, b"[]", 200),
        ("/tokenize", b'{"error":{"code":429}}', 200),
        ("/tokenize", b"no JSON", 200),
    ],
)
async def test_an_answer_with_nothing_but_an_error_is_one(path: str, body: bytes, status: int) -> None:
    relayed = Relayed(path, stream=False)
    await relayed.run(body, kind=JSON)
    assert relayed.sink.sent == [status, body]
    assert relayed.meter.http_status == status


@pytest.mark.parametrize(("body", "stream"), [(b"no JSON", False), (b'{"choices":[]}', True)])
async def test_another_kind_of_answer_is_a_broken_one(body: bytes, stream: bool) -> None:
    relayed = Relayed(stream=stream)
    with pytest.raises(StreamInterrupted):
        await relayed.run(body, kind=JSON)
    assert relayed.sink.sent == []


@pytest.mark.parametrize(
    ("path", "id"), [("/v1/responses", "resp_1"), (COMPLETIONS, None), ("/v1/chat/completions", None)]
)
async def test_a_stored_response_has_an_id(path: str, id: str | None) -> None:
    relayed = Relayed(path, stream=False)
    await relayed.run(b'{"id":"resp_1","output":[]}', kind=JSON)
    assert relayed.meter.response_id == id


@pytest.mark.parametrize(("size", "parts"), [(100, 1), (101, 2)])
async def test_an_answer_up_to_the_limit_is_read_first(size: int, parts: int) -> None:
    body = b'{"choices":[]' + b" " * (size - 14) + b"}"
    relayed = Relayed(stream=False)
    await relayed.run(body, *[b" "] * (parts - 1), kind=JSON, max_bytes=100)
    assert relayed.sink.sent == [200, body, *[b" "] * (parts - 1)]
    assert relayed.meter.terminated is (parts == 1)
    with pytest.raises(StreamInterrupted):
        await Relayed(opened_by=1).run(b"x" * 101, kind=JSON, max_bytes=100)


async def test_a_long_error_is_read_whatever_its_length() -> None:
    relayed = Relayed(stream=False)
    await relayed.run(b"x" * 101, status=400, kind=JSON, max_bytes=100)
    assert [body for _, body in relayed.asked] == [b"x" * 101]
    with pytest.raises(StreamInterrupted, match="the error is too long"):
        await Relayed(stream=False).run(b"x" * (2**20 + 1), status=400, kind=JSON)


@pytest.mark.parametrize("how", ["gzip", "deflate", "GZIP", "x-gzip", "br"])
async def test_compressed_answers_are_read_and_sent_plain(how: str) -> None:
    relayed, body = Relayed("/tokenize", stream=False), b'{"a":"' + b"x" * 3_000_000 + b'"}'
    squeeze = zlib.compressobj(wbits=zlib.MAX_WBITS | (16 if "gzip" in how.lower() else 0))
    packed = squeeze.compress(body) + squeeze.flush()
    await relayed.run(packed[:100], packed[100:], kind=JSON, age="5", content_encoding=how, max_bytes=2**30)
    assert relayed.sink.sent == [200, packed if how == "br" else body]
    assert ("content-encoding" in relayed.sink.headers) is (how == "br")
    assert [relayed.sink.headers[name] for name in ("content-type", "age")] == [JSON, "5"]


async def test_what_is_not_compressed_as_it_says_is_broken() -> None:
    with pytest.raises(StreamInterrupted, match="not compressed as it says"):
        await Relayed(stream=False).run(b"plain", kind=JSON, content_encoding="gzip")


@pytest.mark.parametrize(("status", "blamed"), [(200, 1), (400, 0)])
async def test_an_answer_shows_that_the_engines_before_were_at_fault(status: int, blamed: int) -> None:
    for parts, kind in (([b'{"choices":[]}'], JSON), ([WORD + DONE], EVENTS)):
        ended = list[Any]()
        breaker: Any = type("Breaker", (), {"end": lambda self, ended=ended, **given: ended.append(given)})()
        relayed = Relayed(stream=kind == EVENTS, doubts=[Lease(Replica("http://b", breaker), probe=False)])
        await relayed.run(*parts, status=status, kind=kind)
        assert ended == [{"ok": False, "probe": False}] * blamed
