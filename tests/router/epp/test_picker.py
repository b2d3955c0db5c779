"""What the picker tells a gateway of each request, and when the lease of it ends."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc.aio
import httpx
import orjson
import pytest
import pytest_asyncio

from draftpick.engines.http.client import endpoint_of
from draftpick.engines.mock.app import MockSpec
from draftpick.router.epp.messages import BodyMode
from draftpick.router.epp.server import PickerServer
from tests.fleet import CHAT, FAST, Routed, asked
from tests.router.epp.gateway import Asked, Gateway, answered
from tests.router.request.test_leases import Start, ended, reporting

__all__ = ["reporting"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

BUFFERED, STREAMED = BodyMode.BUFFERED, BodyMode.FULL_DUPLEX_STREAMED
each_mode = pytest.mark.parametrize("mode", [BUFFERED, STREAMED], ids=lambda mode: mode.name)


class Picked(Gateway):
    """A gateway before a picker, whose router and engines it knows."""

    def __init__(self, app: Routed, server: PickerServer, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)
        self.app, self.server = app, server
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
    assert made.server.picker.answers["picked"] == 1
