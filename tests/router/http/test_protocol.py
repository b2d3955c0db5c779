"""The server's protocol: its limits hold before a request is complete, and an offered upgrade is declined."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from draftpick.router.config.router_config import RouterConfig
from draftpick.router.http.protocol import server_settings

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n"
UPGRADE = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAE\r\n"
Ask = Callable[[bytes], Awaitable[bytes]]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with path, number of headers and body; `/early`: before the body is read; `/slow`: never."""
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(60)
    try:
        body = b"" if scope["path"] == "/early" else await Request(scope, receive).body()
    except ClientDisconnect:
        return
    text = f"{scope['path']} {len(scope['headers'])} {body.decode()}"
    await PlainTextResponse(text)(scope, receive, send)


class Door:
    """A running server, and connections to it."""

    def __init__(self, port: int) -> None:
        self._port, self._writers = port, list[asyncio.StreamWriter]()

    async def open(self, data: bytes = b"") -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers.append(writer)
        writer.write(data)
        await asyncio.sleep(0.02)
        return reader

    async def ask(self, data: bytes) -> bytes:
        """All bytes until the server closes; what it no longer reads is not sent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers.append(writer)
        writer.write(data)
        async with asyncio.timeout(10):
            return await reader.read()

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def door(descriptors: int = 10_000, **limits: object) -> AsyncIterator[Door]:
    listening = socket.create_server(("127.0.0.1", 0))
    config = RouterConfig.model_validate({"default_engine": "a", **limits})
    server = uvicorn.Server(server_settings(app, config, 1.0, descriptors))
    serving = asyncio.create_task(server._serve([listening]))
    while not server.started:  # noqa: ASYNC110  # uvicorn has no such event
        await asyncio.sleep(0.01)
    opened = Door(listening.getsockname()[1])
    try:
        yield opened
    finally:
        opened.close()
        server.should_exit = True
        await serving


async def test_a_head_without_an_end_is_refused_before_it_is_complete() -> None:
    endless = {
        "headers": HEAD + b"".join(b"x-%d: %s\r\n" % (i, b"y" * 1000) for i in range(60)),
        "one header": HEAD + b"x: " + b"y" * 60_000,
        "URL": b"GET /" + b"a" * 60_000,
        "trailers": HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n" + b"x: " + b"y" * 900_000,
    }
    async with door() as opened:
        for data in endless.values():
            answer = await opened.ask(data)
            assert answer.startswith(b"HTTP/1.1 431 ")
            assert b'"code":"headers_too_large"' in answer


async def test_trailers_are_no_headers() -> None:
    chunked = HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-trailer: 1\r\n\r\n"
    async with door() as opened:
        assert (await opened.ask(chunked)).endswith(b"/ 3 hi")


async def test_a_request_that_does_not_come_to_its_end_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    async with door(receive_timeout_s=0.3) as opened:
        assert await opened.ask(b"") == b""
        assert (await opened.ask(HEAD)).startswith(b"HTTP/1.1 408 ")
        assert (await opened.ask(HEAD + b"content-length: 9\r\n\r\n{")).startswith(b"HTTP/1.1 408 ")
    assert not caplog.records


async def test_an_answer_may_take_longer_than_its_request() -> None:
    async with door(receive_timeout_s=0.2) as opened:
        reader = await opened.open(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(0.5)
        assert not reader.at_eof()


async def test_beyond_the_limit_the_longest_idle_connection_is_closed() -> None:
    async with door(max_connections=3) as opened:
        held = [await opened.open() for _ in range(3)]
        assert b" 200 " in await opened.ask(HEAD + b"connection: close\r\n\r\n")
        assert await held[0].read() == b""
        assert not held[2].at_eof()


async def test_connections_are_bounded_by_the_files_that_the_process_may_open() -> None:
    async with door(descriptors=70) as opened:
        busy = [await opened.open(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n") for _ in range(3)]
        answer = await opened.ask(b"")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        assert not any(reader.at_eof() for reader in busy)


async def test_an_answer_before_the_end_of_a_request_can_be_read() -> None:
    early = b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\n" + b"a" * 2_000_000
    async with door() as opened:
        assert (await opened.ask(early)).endswith(b"/early 2 ")


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
async def test_an_offered_upgrade_is_ignored(framing: str) -> None:
    chunked = b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    body = b"content-length: 2\r\n\r\nhi" if framing == "content-length" else chunked
    async with door() as opened:
        last = HEAD + b"connection: close\r\n" + body
        answer = await opened.ask(HEAD + UPGRADE + body + HEAD + UPGRADE + body + last)
        assert answer.count(b"HTTP/1.1 200 ") == 3
        assert answer.count(b"/ 2 hi") == 2


async def test_websockets_are_refused() -> None:
    async with door() as opened:
        answer = await opened.ask(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 501 ")
        assert b'"code":"websocket_not_supported"' in answer


async def test_tunnels_are_refused() -> None:
    async with door() as opened:
        answer = await opened.ask(b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nhost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 405 ")


async def test_invalid_http_is_refused_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with door() as opened:
        for data in (b"GARBAGE\r\n\r\n", HEAD + b"content-length: x\r\n\r\n"):
            assert (await opened.ask(data)).startswith(b"HTTP/1.1 400 ")
    assert not caplog.records
