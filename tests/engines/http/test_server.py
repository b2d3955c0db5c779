"""The server inside a running loop: its address, its load, its drain."""

import asyncio
import socket

import httpx
import pytest

from draftpick.engines.mock.app import mock_app
from tests.fleet import CHAT, FAST, MODEL, SLOW, StartMock, asked, serve, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_every_server_gets_a_port_of_its_own(mock_engine: StartMock) -> None:
    first, second = await mock_engine(), await mock_engine()
    assert first.url != second.url
    async with httpx.AsyncClient() as client:
        for mock in (first, second):
            assert (await client.get(f"{mock.url}/health")).status_code == 200


async def test_in_flight_counts_requests_until_their_last_byte(mock_engine: StartMock) -> None:
    mock = await mock_engine(SLOW)
    assert mock.server.in_flight == 0
    async with httpx.AsyncClient(base_url=mock.url) as client:
        async with client.stream("POST", CHAT, json=asked(stream=True)) as answer:
            chunks = answer.aiter_raw()
            await anext(chunks)
            assert mock.server.in_flight == 1
        await until(lambda: mock.server.in_flight == 0)


async def refused(url: str) -> None:
    """Wait until no connection is accepted any more."""
    for _ in range(100):
        try:
            async with httpx.AsyncClient() as client:
                await client.get(f"{url}/health")
        except httpx.TransportError:
            return
        await asyncio.sleep(0.01)
    raise TimeoutError(url)


async def test_drain_finishes_a_running_stream_and_refuses_new_connections() -> None:
    app = mock_app(SLOW, model=MODEL)
    server = await serve(app)
    url = server.url
    async with (
        httpx.AsyncClient(base_url=url) as client,
        client.stream("POST", CHAT, json=asked(stream=True)) as answer,
    ):
        chunks = answer.aiter_raw()
        received = await anext(chunks)
        drained = asyncio.create_task(server.drain(30))
        await refused(url)
        assert not drained.done()
        app.state.engine.reconfigure({"step_s": 0})
        received += b"".join([chunk async for chunk in chunks])
    await drained
    assert received.endswith(b"data: [DONE]\n\n")
    assert app.state.engine.ended == {"finished": 1, "aborted": 0, "failed": 0}


async def test_drain_cuts_what_outlasts_it() -> None:
    app = mock_app(SLOW, model=MODEL)
    server = await serve(app)
    async with (
        httpx.AsyncClient(base_url=server.url) as client,
        client.stream("POST", CHAT, json=asked(stream=True)) as answer,
    ):
        chunks = answer.aiter_raw()
        await anext(chunks)
        await server.drain(0.1)
        await until(lambda: server.in_flight == 0)
        assert app.state.engine.ended["aborted"] == 1


async def test_an_idle_server_drains_at_once_and_only_once() -> None:
    server = await serve(mock_app(FAST, model=MODEL))
    async with asyncio.timeout(20):
        await server.drain(30)
        await server.drain(30)


async def test_small_chunks_do_not_wait_for_each_other(mock_engine: StartMock) -> None:
    """Nagle's algorithm is off: with it, the second of two small chunks would wait for the first one's receipt."""
    mock = await mock_engine()
    async with httpx.AsyncClient(base_url=mock.url) as client:
        await client.get("/health")
        sockets = [c.transport.get_extra_info("socket") for c in mock.server._server.server_state.connections]
        assert [s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for s in sockets] == [1]
