"""Serves an ASGI application on its own port inside a running event loop; the drain finishes running streams."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

PROFILING = b"x-draftpick-profiling"
"""Header of the requests by which an engine measures itself."""

_ELSEWHERE = "192.0.2.1"
"""An address of TEST-NET-1 (RFC 5737)."""


class RequestCounter(Protocol):
    """Counts the clients' requests for answers."""

    def begin(self) -> None: ...
    def end(self) -> None: ...


class _Server(uvicorn.Server):
    """A server that does not install signal handlers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class LocalServer:
    """Serves `app` on `host` and a port chosen by the kernel, as a task of the running loop."""

    def __init__(
        self,
        app: ASGIApp,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        serving: RequestCounter | None = None,
        protocol: type[asyncio.Protocol] | None = None,
    ) -> None:
        """`protocol`: of its connections; absent: uvicorn's, without limits."""
        self._app, self._serving = app, serving
        self._in_flight = 0
        # asyncio disables Nagle's algorithm only if the protocol is named; with it, small chunks are delayed by 40 ms.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((host, port))
        self._socket.listen(2048)
        config = uvicorn.Config(
            self._count,
            interface="asgi3",
            http=protocol or "auto",
            log_config=None,
            access_log=False,
            lifespan="off",
            proxy_headers=False,
            timeout_keep_alive=120,
            backlog=2048,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Base URL without a trailing slash."""
        host, port = self._socket.getsockname()[:2]
        return f"http://{host}:{port}"

    @property
    def in_flight(self) -> int:
        """Number of requests in flight."""
        return self._in_flight

    async def start(self) -> None:
        """Start and return once connections are accepted."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            if self._task.done():
                await self._task
            await asyncio.sleep(0.005)

    async def drain(self, timeout_s: float) -> None:
        """Stop accepting, finish running requests, abort the remaining ones after `timeout_s`."""
        if self._task is None:
            self._socket.close()
            return
        self._server.config.timeout_graceful_shutdown = max(1, int(timeout_s))
        self._server.should_exit = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._task, timeout_s + 2)
        self._task = None

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._in_flight += 1
        counter = self._serving if _is_of_client(scope) else None
        if counter is not None:
            counter.begin()
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_flight -= 1
            if counter is not None:
                counter.end()


def node_address() -> str:
    """The address of this node, as others reach it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect((_ELSEWHERE, 9))  # sends nothing: it asks for the route
        return str(probe.getsockname()[0])
    return socket.gethostbyname(socket.gethostname())


def _is_of_client(scope: Scope) -> bool:
    return (
        scope["method"] == "POST"
        and not scope["path"].startswith("/draftpick/")
        and all(name != PROFILING for name, _ in scope["headers"])
    )
