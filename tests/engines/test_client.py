"""The engines' HTTP client: bytes as they come, and which error tells of which fault."""

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest
import pytest_asyncio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engines.client import EngineClient, Headers
from engines.errors import EngineBroken, EngineTimeout, EngineUnavailable
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
    with pytest.raises(EngineBroken):
        await read(client, mock.url, stream=stream, into=received)
    assert received


async def test_a_stream_that_outlasts_the_longest_answer_is_broken(
    impatient: EngineClient, mock_engine: StartMock
) -> None:
    mock = await mock_engine(SLOW)
    with pytest.raises(EngineBroken):
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
