"""The HTTP client for engines: sends a request and streams the answer.

It uses its own connections: httpx and aiohttp take several times as long on the request path (README, "Fast").
"""

import asyncio
import errno
import logging
import os
import re
import ssl
from base64 import b64encode
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import unquote, urlsplit

from draftpick.engines.errors import (
    ConnectionLost,
    ConnectTimeout,
    EngineTimeout,
    EngineUnreachable,
    RequestNotSendable,
    ResourcesExhausted,
)
from draftpick.engines.http.connection import Connection, Exchange, Headers

__all__ = ["EngineAccess", "EngineClient", "EngineResponse", "Headers", "endpoint_of", "redact_userinfo"]

log = logging.getLogger("draftpick.engines")

_CONNECT_S = 5.0
_IDLE_S = 60.0
"""Shorter than the engines' keep-alive timeout, so that none closes a connection under a request."""
_SWEEP_S = 15.0
_TARGET = re.compile(r"/[\x21-\x7e]*")
_FULL_BODY_HEADERS = 2**16
_STALE_S = 1.0
"""Longest time in which an engine that has closed an idle connection refuses a request on it."""
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EAGAIN})
_EXHAUSTED_TEXTS = tuple(os.strerror(number) for number in _EXHAUSTED)


@dataclass(frozen=True, slots=True)
class EngineResponse:
    """An engine's answer: status, headers, and the body as an iterator of raw chunks, which knows when they came."""

    status: int
    headers: Headers
    chunks: Exchange


@dataclass(frozen=True, slots=True)
class EngineAccess:
    """How an engine is reached: its `authorization`, which replaces that of requests, and its TLS context."""

    authorization: str | None = None
    tls: ssl.SSLContext | None = None


@dataclass(slots=True)
class _Origin:
    """Destination of connections: scheme, host and port, with the idle connections to it.

    `authorization`: as in `EngineAccess`. `distrusted`: an untrusted certificate has been logged.
    """

    host: str
    port: int
    netloc: str
    tls: ssl.SSLContext | None
    authorization: str | None
    distrusted: bool = False
    idle: deque[Connection] = field(default_factory=deque)

    @classmethod
    def from_url(cls, url: str, access: EngineAccess) -> "_Origin":
        parts = urlsplit(url)
        tls = (access.tls or ssl.create_default_context()) if parts.scheme == "https" else None
        authorization = access.authorization or authorization_of(url)
        return cls(
            parts.hostname or "",
            parts.port or (443 if tls else 80),
            parts.netloc.rpartition("@")[2],
            tls,
            authorization,
        )


class EngineClient:
    """A pool of connections to engines.

    `first_byte_timeout_s` bounds the wait for a stream's first byte, `stream_idle_timeout_s` the wait for each further
    chunk, `timeout_s` a complete answer. `response_timeout_s`: of the first byte of a stream (True) and of a complete
    answer (False).
    """

    def __init__(
        self,
        *,
        first_byte_timeout_s: float,
        timeout_s: float,
        stream_idle_timeout_s: float = 120.0,
        access: Mapping[str, EngineAccess] | None = None,
    ) -> None:
        """`access`: by scheme and host, such as `https://10.0.0.1:8000`."""
        self.access = access or {}
        self.response_timeout_s = {True: first_byte_timeout_s, False: timeout_s}
        self.timeout_s, self.stream_idle_timeout_s = timeout_s, stream_idle_timeout_s
        self.origins: dict[str, _Origin] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    def send(
        self, url: str, method: str, headers: Headers, body: bytes, *, stream: bool, within_s: float | None = None
    ) -> "_PendingRequest":
        """Prepare one request, an async context manager that yields the `EngineResponse`.

        Raises `EngineUnavailable` or `EngineTimeout` before the first byte, `StreamInterrupted` after it,
        `RequestNotSendable` and `ResourcesExhausted` without an attempt. `within_s`: a tighter limit for the first
        byte. A kept connection that the engine closes unanswered is replaced by a new one. Leaving the block before the
        last chunk closes the connection, which aborts the request in the engine.
        """
        return _PendingRequest(self, url, method, headers, body, stream, within_s)

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for origin in self.origins.values():
            while origin.idle:
                origin.idle.pop().transport.close()

    def add_origin(self, base: str) -> _Origin:
        """Remember a destination."""
        self.origins[base] = origin = _Origin.from_url(base, self.access.get(base, EngineAccess()))
        return origin

    def keep(self, origin: _Origin, connection: Connection) -> None:
        """Keep an idle connection for the next request."""
        connection.idle_since = asyncio.get_running_loop().time()
        origin.idle.append(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)

    def idle_connection(self, origin: _Origin) -> Connection | None:
        """A kept connection that is open as far as is known."""
        while origin.idle:
            connection = origin.idle.pop()
            if not connection.closed and not connection.transport.is_closing():
                return connection
        return None

    async def connect(self, origin: _Origin, within_s: float) -> Connection:
        """A new connection. Raises `EngineTimeout`, `EngineUnreachable` or `ResourcesExhausted`."""
        connect_s = min(_CONNECT_S, within_s)
        try:
            async with asyncio.timeout(connect_s):
                _, made = await asyncio.get_running_loop().create_connection(
                    Connection, origin.host, origin.port, ssl=origin.tls
                )
        except TimeoutError as error:
            late = ConnectTimeout if connect_s == _CONNECT_S else EngineTimeout
            raise late(f"no connection within {connect_s:g} s") from error
        except ssl.SSLError as error:
            if not origin.distrusted:
                origin.distrusted = True
                log.error("no TLS with the engine at %s: %s (engines[].ca_file)", origin.netloc, error)
            raise EngineUnreachable(f"no TLS: {error}") from error
        except OSError as error:
            if _is_exhausted(error):
                raise ResourcesExhausted(f"no connection: {error}") from error
            raise EngineUnreachable("connection refused") from error
        return made

    def _sweep(self) -> None:
        """Close connections with a long idle time; the oldest of an origin are at the left end."""
        loop = asyncio.get_running_loop()
        for origin in self.origins.values():
            while origin.idle and (origin.idle[0].closed or origin.idle[0].idle_since + _IDLE_S < loop.time()):
                origin.idle.popleft().transport.close()
        waiting = any(origin.idle for origin in self.origins.values())
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep) if waiting else None


def _is_exhausted(error: OSError) -> bool:
    """True if this process or machine lacks something; of several addresses, asyncio joins the texts alone."""
    return error.errno in _EXHAUSTED or (error.errno is None and any(map(str(error).__contains__, _EXHAUSTED_TEXTS)))


def authorization_of(url: str) -> str | None:
    """The `authorization` that user name and password of a URL mean; one of them alone is a bearer token."""
    user, _, password = urlsplit(url).netloc.rpartition("@")[0].partition(":")
    if user and password:
        return f"Basic {b64encode(f'{unquote(user)}:{unquote(password)}'.encode()).decode()}"
    return f"Bearer {unquote(user or password)}" if user or password else None


def endpoint_of(url: str) -> str:
    """Host and port of a URL, as gateways name endpoints: `10.0.0.7:8000`, `[fd00::7]:8000`."""
    scheme, _, rest = url.partition("://")
    netloc = rest.partition("/")[0].rpartition("@")[2]
    has_port = netloc.rpartition(":")[2].isdigit() and not netloc.endswith("]")
    return netloc if has_port else f"{netloc}:{443 if scheme == 'https' else 80}"


def redact_userinfo(url: str) -> str:
    """Return a URL without user name and password, for display."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


@dataclass(slots=True)
class _PendingRequest:
    """`async with` yields the `EngineResponse`."""

    client: EngineClient
    url: str
    method: str
    headers: Headers
    body: bytes
    stream: bool
    within_s: float | None
    _used: tuple[_Origin, Exchange] | None = None

    async def __aenter__(self) -> EngineResponse:
        """Send the request on a connection, and wait for the status and headers of its answer."""
        client, loop = self.client, asyncio.get_running_loop()
        slash = self.url.find("/", 8)
        base, target = (self.url, "/") if slash < 0 else (self.url[:slash], self.url[slash:])
        origin = client.origins.get(base) or client.add_origin(base)
        first_s = client.response_timeout_s[self.stream]
        if self.within_s is not None:
            first_s = min(first_s, self.within_s)
        data, began = _head(self, target, origin), loop.time()
        if (kept := client.idle_connection(origin)) is not None:
            try:
                return await self._exchange(origin, kept, data, first_s, began)
            except ConnectionLost:
                if loop.time() > began + _STALE_S:
                    raise
        return await self._exchange(origin, await client.connect(origin, first_s), data, first_s, began)

    async def _exchange(
        self, origin: _Origin, connection: Connection, data: bytes, first_s: float, began: float
    ) -> EngineResponse:
        """Send the request on a connection, and wait for the head of its answer."""
        stall_s = self.client.stream_idle_timeout_s if self.stream else None
        exchange = Exchange(connection, began, first_s, stall_s, self.client.timeout_s)
        try:
            if len(self.body) < _FULL_BODY_HEADERS:
                connection.transport.write(data + self.body)
            else:
                connection.transport.writelines((data, self.body))
            await exchange.head
        except BaseException:  # cancelled, too: nobody else knows of the connection
            exchange.end()
            connection.transport.abort()
            raise
        self._used = origin, exchange
        return EngineResponse(exchange.status, exchange.headers, exchange)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Keep the connection of a complete exchange; close one with an unread rest of the answer."""
        assert self._used is not None
        origin, exchange = self._used
        if exchange.end():
            self.client.keep(origin, exchange.connection)
        else:
            exchange.connection.transport.abort()


def _head(sending: _PendingRequest, target: str, origin: _Origin) -> bytes:
    """Encode the request head. Raises `RequestNotSendable` for fields that could inject a second request."""
    lines = [f"{name}: {value}\r\n" for name, value in sending.headers]
    if origin.authorization is not None:
        lines = [line for line in lines if line[:14].lower() != "authorization:"]
        lines.append(f"authorization: {origin.authorization}\r\n")
    if sending.body:
        lines.append(f"content-length: {len(sending.body)}\r\n")
    head = f"{sending.method} {target} HTTP/1.1\r\nhost: {origin.netloc}\r\n{''.join(lines)}\r\n"
    number = len(lines) + 3
    if _TARGET.fullmatch(target) is None or head.count("\n") != number or head.count("\r") != number:
        raise RequestNotSendable("the request cannot be written as HTTP")
    try:
        return head.encode("latin-1")
    except UnicodeEncodeError as error:
        raise RequestNotSendable("the request cannot be written as HTTP") from error
