"""The HTTP protocol of the router's server: uvicorn's, with limits that hold before a request is complete.

uvicorn keeps URLs and headers of any size, waits forever for the rest of a request, and loses the body of a request
that offers an upgrade. Errors here are answered as OpenAI errors and are not logged: a client without a key could fill
the log.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import httptools
import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from draftpick.router.config.router_config import RouterConfig

_LINGER_S = 30.0
"""How long a connection is read after an answer that came before the end of its request."""
_UPGRADE_HEADERS = frozenset((b"upgrade", b"http2-settings"))


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """Limits of connections.

    `max_head_bytes`: of the URL and all headers; `receive_timeout_s`: for a whole request; `max_discarded_bytes`: of
    the rest of a request that was answered early.
    """

    max_connections: int
    max_head_bytes: int
    receive_timeout_s: float
    max_discarded_bytes: int

    @classmethod
    def from_config(cls, config: RouterConfig, descriptors: int) -> "DoorLimits":
        """`descriptors`: those that the process may open; a stream uses two, one each way."""
        affordable = max(1, (descriptors - _RESERVED_DESCRIPTORS) // 2)
        head = config.max_header_bytes + config.max_url_bytes
        return cls(min(config.max_connections, affordable), head, config.receive_timeout_s, config.max_body_bytes)


_RESERVED_DESCRIPTORS = 64
"""Descriptors for files, records, status pages and the event loop."""


def protocol_of(limits: DoorLimits) -> type[asyncio.Protocol]:
    """The protocol class with these limits, for `uvicorn.Config(http=...)`."""
    return type("LimitedProtocol", (_LimitedProtocol,), {"limits": limits})


class _LimitedProtocol(HttpToolsProtocol):
    limits: DoorLimits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection; beyond the limit, close the one that has been idle longest, or this one."""
        super().connection_made(transport)
        self._since: float | None = self.loop.time()
        """When the request that is being received began; None: it is complete."""
        self._in_head, self._unread, self._lingering = True, 0, False
        self._watch = self.loop.call_later(self.limits.receive_timeout_s, self._check_time)
        if len(self.connections) > self.limits.max_connections:
            idle = [one for one in self.connections if isinstance(one, _LimitedProtocol) and one._idle()]
            oldest = min(idle, key=lambda one: one._since or one.loop.time())
            if oldest is self:
                self._refuse(503, "too_many_connections", "too many connections")
            else:
                oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; bound what was received without progress: an incomplete head, or endless trailers."""
        if self._lingering:
            self._unread += len(data)
            if self._unread > self.limits.max_discarded_bytes:
                self.transport.abort()
            return
        self._unset_keepalive_if_required()
        self._unread += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(400, "invalid_http", "invalid HTTP")
        if self._unread > self.limits.max_head_bytes and self.parser is not None:
            self._refuse(431, "headers_too_large", f"more than {self.limits.max_head_bytes} bytes of URL and headers")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._since, self._in_head = self.loop.time(), True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers are no headers
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if not self.parser.should_upgrade():
            self._unread = 0
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._since, self._unread = None, 0
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body and not self.transport.is_closing():
            # Answered before its end: whatever follows is discarded, so that the client can read the answer.
            self._linger()

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Answer a request that offers an upgrade as HTTP/1.1 (RFC 9110, 7.8): parse it again without the offer."""
        if (offered := self._get_upgrade()) is None:  # CONNECT
            self._refuse(405, "method_not_allowed", "tunnels are not supported")
            return
        if offered == b"websocket":
            self._refuse(501, "websocket_not_supported", "WebSocket is not supported")
            return
        lines = [b"%b %b HTTP/1.1" % (self.parser.get_method(), self.url)]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token.lower() not in _UPGRADE_HEADERS)
            if name not in _UPGRADE_HEADERS and (value or name != b"connection"):
                lines.append(b"%b: %b" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    def _idle(self) -> bool:
        """True if no request is complete and unanswered."""
        return self.cycle is None or self.cycle.response_complete or self._since is not None

    def _check_time(self) -> None:
        """Close a connection whose request does not come to its end in time."""
        now = self.loop.time()
        if self.pipeline or self._since is None or self._lingering:
            begun = now
        elif now - self._since < self.limits.receive_timeout_s:
            begun = self._since
        else:
            text = f"no complete request within {self.limits.receive_timeout_s:g} s"
            self._refuse(408, "request_timeout", text, silent=not self._unread and self.cycle is None)
            return
        self._watch = self.loop.call_at(begun + self.limits.receive_timeout_s, self._check_time)

    def _refuse(self, status: int, code: str, message: str, *, silent: bool = False) -> None:
        """Answer with an error, unless an answer has begun, and close. `silent`: nothing was asked."""
        cycle = self.cycle
        running = cycle is not None and not cycle.response_complete
        if not silent and not (running and cycle.response_started):
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
            body = orjson.dumps({"error": error})
            more = b"retry-after: 1\r\n" if status == 503 else b""
            head = b"content-type: application/json\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head % (len(body), more) + body)
        if running:
            cycle.disconnected = True
            cycle.message_event.set()
        self._linger()

    def _linger(self) -> None:
        self._lingering, self._unread = True, 0
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(_LINGER_S, self.transport.close)


def server_settings(app: Any, config: RouterConfig, drain_s: float, descriptors: int) -> uvicorn.Config:
    """The router's server. `drain_s`: time for running requests at its end; `descriptors`: as in `DoorLimits`."""
    return uvicorn.Config(
        app,
        http=protocol_of(DoorLimits.from_config(config, descriptors)),
        ws="none",
        interface="asgi3",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(config.idle_timeout_s),
        timeout_graceful_shutdown=max(1, int(drain_s)),
    )
