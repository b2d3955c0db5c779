"""The engines' HTTP client: bytes as they come, and which error tells of which fault."""

import asyncio
import errno
from collections.abc import AsyncIterator
from functools import partial

import orjson
import pytest
import pytest_asyncio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from draftpick.engines.errors import (
    AnswerTooLong,
    ConnectionLost,
    EngineTimeout,
    EngineUnavailable,
    RequestNotSendable,
    ResourcesExhausted,
    StreamInterrupted,
)
from draftpick.engines.http.client import EngineClient, Headers, endpoint_of
from tests.fleet import BREAKS, CHAT, FAST, HANGS, REFUSING_URL, SLOW, Servers, StartMock, asked, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = [("content-type", "application/json")]


@pytest_asyncio.fixture(loop_scope="module")
async def client() -> AsyncIterator[EngineClient]:
    opened = EngineClient(first_byte_timeout_s=30, timeout_s=60)
    yield opened
    await opened.close()


async def read(client: EngineClient, url: str, *, stream: bool = True, into: bytearray | None = None) -> bytes:
    """The whole answer to a chat request; `into` keeps what came before an error."""
    received = bytearray() if into is None else into
    body = orjson.dumps(asked(stream=stream))
    async with client.send(url + CHAT, "POST", JSON, body, stream=stream) as answer:
        async for chunk in answer.chunks:
            received += chunk
    return bytes(received)


@pytest_asyncio.fixture(loop_scope="module")
async def impatient() -> AsyncIterator[EngineClient]:
    opened = EngineClient(first_byte_timeout_s=0.2, timeout_s=1.5)
    yield opened
    await opened.close()


def lower(headers: Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers}


async def test_a_whole_answer(client: EngineClient, mock_engine: StartMock) -> None:
    mock = await mock_engine()
    answer = orjson.loads(await read(client, mock.url, stream=False))
    assert answer["usage"]["completion_tokens"] == FAST.output_tokens
    assert mock.last_body == orjson.dumps(asked(stream=False))


async def test_a_stream_comes_while_it_is_made(client: EngineClient, mock_engine: StartMock) -> None:
    mock = await mock_engine(SLOW)
    body = orjson.dumps(asked(stream=True))
    async with client.send(mock.url + CHAT, "POST", JSON, body, stream=True) as answer:
        assert answer.status == 200
        assert lower(answer.headers)["content-type"] == "text/event-stream; charset=utf-8"
        assert (await anext(answer.chunks)).startswith(b"data: {")
        assert mock.engine.state()["running"] == 1


async def test_an_error_of_the_engine_is_an_answer(client: EngineClient, mock_engine: StartMock) -> None:
    mock = await mock_engine()
    async with client.send(mock.url + CHAT, "POST", JSON, b"{", stream=False) as answer:
        assert answer.status == 400
        assert b"invalid_request" in b"".join([chunk async for chunk in answer.chunks])


async def test_a_refused_connection_is_unavailable(client: EngineClient) -> None:
    with pytest.raises(EngineUnavailable):
        await read(client, REFUSING_URL)


async def test_a_connection_that_closes_without_an_answer_is_unavailable(client: EngineClient) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
        with pytest.raises(EngineUnavailable):
            await read(client, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


async def test_a_stream_without_a_first_byte_times_out(impatient: EngineClient, mock_engine: StartMock) -> None:
    mock = await mock_engine(HANGS)
    with pytest.raises(EngineTimeout, match=r"no first byte within 0\.2 s"):
        await read(impatient, mock.url)
    await until(lambda: mock.aborted == 1)


async def test_a_whole_answer_may_take_longer_than_a_first_byte(
    impatient: EngineClient, mock_engine: StartMock
) -> None:
    mock = await mock_engine(FAST.model_copy(update={"prefill_s": 0.3}))
    assert b"usage" in await read(impatient, mock.url, stream=False)


async def test_a_whole_answer_times_out(impatient: EngineClient, mock_engine: StartMock) -> None:
    mock = await mock_engine(HANGS)
    with pytest.raises(EngineTimeout, match=r"no first byte within 1\.5 s"):
        await read(impatient, mock.url, stream=False)
    await until(lambda: mock.aborted == 1)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_stops_is_broken(client: EngineClient, mock_engine: StartMock, stream: bool) -> None:
    mock, received = await mock_engine(BREAKS), bytearray()
    with pytest.raises(StreamInterrupted):
        await read(client, mock.url, stream=stream, into=received)
    assert received


async def test_a_stream_that_outlasts_the_longest_answer_is_broken(
    impatient: EngineClient, mock_engine: StartMock
) -> None:
    mock = await mock_engine(SLOW)
    with pytest.raises(AnswerTooLong):
        await read(impatient, mock.url)


async def test_leaving_the_block_early_stops_the_engine(client: EngineClient, mock_engine: StartMock) -> None:
    mock = await mock_engine(SLOW)
    body = orjson.dumps(asked(stream=True))
    async with client.send(mock.url + CHAT, "POST", JSON, body, stream=True) as answer:
        await anext(answer.chunks)
    await until(lambda: mock.aborted == 1, timeout_s=1)


async def test_a_cancelled_wait_stops_the_engine(client: EngineClient, mock_engine: StartMock) -> None:
    mock = await mock_engine(HANGS)
    task = asyncio.create_task(read(client, mock.url, stream=False))
    await until(lambda: mock.engine.started == 1)
    task.cancel()
    await until(lambda: mock.aborted == 1, timeout_s=1)


async def test_connections_are_used_again(client: EngineClient, servers: Servers) -> None:
    peers = set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        peers.add(scope["client"])
        await Response(b"{}")(scope, receive, send)

    url = (await servers.serve(app)).url
    for _ in range(3):
        await read(client, url, stream=False)
    assert len(peers) == 1


async def closing_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, partial: bytes = b"") -> None:
    """Answer the first request on a connection, and close it on the second one."""
    for reply in (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", partial):
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r")[0]))
        writer.write(reply)
    writer.close()


async def test_a_kept_connection_that_the_engine_has_closed_is_replaced(client: EngineClient) -> None:
    async with await asyncio.start_server(closing_second, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert [await read(client, url, stream=False) for _ in range(4)] == [b"{}"] * 4


async def test_a_kept_connection_with_half_an_answer_is_not_replaced(client: EngineClient) -> None:
    half = partial(closing_second, partial=b"HTTP/1.1 2")
    async with await asyncio.start_server(half, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await read(client, url, stream=False)
        with pytest.raises(EngineUnavailable) as raised:
            await read(client, url, stream=False)
    assert not isinstance(raised.value, ConnectionLost)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, "x"), OSError("Multiple exceptions: [Errno 24] Too many open files, [Errno 111] refused")],
)
async def test_a_lack_of_descriptors_is_not_the_engines(
    client: EngineClient, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    async def create_connection(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", create_connection)
    with pytest.raises(ResourcesExhausted):
        await read(client, "http://127.0.0.1:1")


async def test_nothing_is_added_to_the_headers_but_what_http_needs(client: EngineClient, servers: Servers) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(Request(scope).headers)
        await Response()(scope, receive, send)

    url = (await servers.serve(app)).url
    async with client.send(url + "/x", "POST", [("x-mine", "1")], b"{}", stream=False):
        assert set(seen) == {"host", "content-length", "x-mine"}


async def test_redirects_and_compressed_bodies_pass_as_they_are(client: EngineClient, servers: Servers) -> None:
    headers = {"location": "http://elsewhere/", "content-encoding": "gzip"}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(b"packed", 307, headers)(scope, receive, send)

    url = (await servers.serve(app)).url
    async with client.send(url, "GET", [], b"", stream=False) as answer:
        assert answer.status == 307
        assert b"".join([chunk async for chunk in answer.chunks]) == b"packed"
    assert headers.items() <= lower(answer.headers).items()


async def test_credentials_of_an_address_replace_those_of_a_request(client: EngineClient, servers: Servers) -> None:
    seen: list[str | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(Request(scope).headers.get("authorization"))
        await Response()(scope, receive, send)

    url = (await servers.serve(app)).url.replace("http://", "http://me:a%40b@")
    for headers in ([], [("Authorization", "Bearer x")]):
        async with client.send(url, "GET", headers, b"", stream=False):
            pass
    assert seen == ["Basic bWU6YUBi"] * 2


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/x HTTP/1.1\r\nx: y\r\n\r\nGET /y", []),
        ("/a b", []),
        ("/x", [("x", "1\r\ny: 2")]),
        ("/x", [("x", "1\n")]),
        ("/x", [("x\r\n", "1")]),
    ],
)
async def test_nothing_can_be_smuggled_into_a_request(client: EngineClient, target: str, headers: Headers) -> None:
    with pytest.raises(RequestNotSendable, match="cannot be written"):
        async with client.send(REFUSING_URL + target, "GET", headers, b"", stream=False):
            pass


async def raw(*answers: bytes) -> tuple[asyncio.Server, str]:
    """A server whose connections answer each request with the next of `answers`, and close after the last."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_body_without_a_length_ends_with_the_connection(client: EngineClient) -> None:
    server, url = await raw(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nx: y\r\n\r\nall of it")
    async with server, client.send(url, "GET", [], b"", stream=False) as answer:
        assert (answer.status, answer.headers) == (200, [("x", "y")])
        assert b"".join([chunk async for chunk in answer.chunks]) == b"all of it"


BEYOND = b"HTTP/1.1 600 Beyond\r\ncontent-length: 0\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\njunk"


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", b"", SWITCHING, BEYOND]
)
async def test_what_is_no_http_is_unavailable(client: EngineClient, answer: bytes) -> None:
    server, url = await raw(answer)
    async with server:
        with pytest.raises(EngineUnavailable):
            async with client.send(url, "GET", [], b"", stream=False):
                pass


@pytest.mark.parametrize(
    ("begins", "line"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        (b"HTTP/1.1 200 OK\r\nx: ", b"y" * 1000),
    ],
)
async def test_a_head_without_an_end_is_left(client: EngineClient, begins: bytes, line: bytes) -> None:
    server, url = await raw(begins + line * (2**21 // len(line)))
    async with server:
        with pytest.raises(EngineUnavailable):
            async with client.send(url, "GET", [], b"", stream=False):
                pass


async def test_trailers_without_an_end_break_an_answer(client: EngineClient) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: "
    server, url = await raw(head + b"y" * 2**21)
    async with server:
        with pytest.raises(StreamInterrupted):
            async with client.send(url, "GET", [], b"", stream=False) as answer:
                assert [chunk async for chunk in answer.chunks] == [b"ok"]


async def test_a_connection_that_says_more_than_was_asked_is_not_used_again(client: EngineClient) -> None:
    server, url = await raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n", b"never")
    async with server:
        async with client.send(url, "GET", [], b"", stream=False) as answer:
            assert [chunk async for chunk in answer.chunks] == [b"ok"]
        async with client.send(url, "GET", [], b"", stream=False) as answer:
            assert [chunk async for chunk in answer.chunks] == [b"ok"]


async def test_a_reader_that_does_not_read_stops_the_engine_and_not_the_clock(servers: Servers) -> None:
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400):
            await send({"type": "http.response.body", "body": b"x" * 2**16, "more_body": True})
            sent += 1
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    url = (await servers.serve(app)).url
    hurried = EngineClient(first_byte_timeout_s=0.3, timeout_s=30, stream_idle_timeout_s=0.3)
    async with hurried.send(url, "GET", [], b"", stream=True) as answer:
        await asyncio.sleep(1)
        assert sent < 300
        assert sum([len(chunk) async for chunk in answer.chunks]) == 400 * 2**16
    await hurried.close()


async def test_a_stream_that_stalls_is_broken(servers: Servers) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await asyncio.sleep(30)

    url = (await servers.serve(app)).url
    hurried = EngineClient(first_byte_timeout_s=20, timeout_s=30, stream_idle_timeout_s=0.2)
    with pytest.raises(StreamInterrupted, match="too late"):
        async with hurried.send(url, "GET", [], b"", stream=True) as answer:
            assert [chunk async for chunk in answer.chunks]
    await hurried.close()


async def test_idle_connections_are_closed(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftpick.engines.http.client._SWEEP_S", 0.05)
    monkeypatch.setattr("draftpick.engines.http.client._IDLE_S", 0.1)
    url = (await servers.mock()).url
    own = EngineClient(first_byte_timeout_s=30, timeout_s=60)
    await read(own, url, stream=False)
    (origin,) = own.origins.values()
    connection = origin.idle[0]
    await until(lambda: not origin.idle and connection.closed)
    assert own._sweeper is None
    await own.close()


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://10.0.0.7:8000", "10.0.0.7:8000"),
        ("http://me:secret@host:1/below", "host:1"),
        ("http://host", "host:80"),
        ("https://host/v1", "host:443"),
        ("http://[fd00::7]:8000", "[fd00::7]:8000"),
        ("http://[fd00::7]", "[fd00::7]:80"),
    ],
)
async def test_an_endpoint_is_host_and_port(url: str, endpoint: str) -> None:
    assert endpoint_of(url) == endpoint
