"""One connection to an engine, and one exchange on it: a request and its streamed answer.

Only parser callbacks and one future are between the socket and the reader, since this runs for every chunk.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httptools

from draftpick.engines.errors import (
    AnswerTooLong,
    ConnectionLost,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    StreamInterrupted,
)

Headers = list[tuple[str, str]]
_MAX_UNREAD = 2**18
"""Buffered bytes at which reading pauses: backpressure from a slow reader reaches the engine, and memory is bounded."""
_MAX_HEAD = 2**18
"""Bytes without a part of the body: of status, headers and trailers."""


_STATUSES = range(100, 600)


class Connection(asyncio.Protocol):
    """A connection that carries one exchange at a time. `idle_since`: loop time."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.exchange: Exchange | None = None
        self.idle_since = 0.0
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self.transport.abort()  # unsolicited data
            return
        if exchange.head_bytes > _MAX_HEAD:
            exchange.fail(EngineUnavailable, f"more than {_MAX_HEAD} bytes of headers")
            return
        exchange.head_bytes += len(data)
        try:
            exchange.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            exchange.fail(EngineUnavailable, f"invalid HTTP: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self.exchange is not None:
            self.exchange.lost(error)


class Exchange(AsyncIterator[bytes]):
    """One request and its answer; iterating yields the chunks of its body.

    `first_s`: maximum wait for the first byte of the body; `stall_s`: for each further chunk; `total_s`: for the
    complete answer; all count from `began` (loop time) or from the last byte. `head`: done once status and headers have
    come; raises `EngineUnavailable` or `EngineTimeout`. `arrived_at`: when the last bytes of the body came
    (`time.perf_counter()`), however late they are read; `received`: their number so far; `head_bytes`: others since
    then. `first_pause`: the first two, when reading first paused for a slow reader; from then on the arrival of bytes
    says nothing about the engine.
    """

    def __init__(
        self, connection: Connection, began: float, first_s: float, stall_s: float | None, total_s: float
    ) -> None:
        self.connection, self._loop = connection, asyncio.get_running_loop()
        self._first_s, self._stall_s, self._total_s = first_s, stall_s, total_s
        self._began, self._last = began, 0.0
        self.parser = httptools.HttpResponseParser(self)
        self.head: asyncio.Future[None] = self._loop.create_future()
        self._waiter: asyncio.Future[None] | None = None
        self._parts: list[bytes] = []
        self._unread = self.head_bytes = 0
        self._paused = False
        self._to_the_end = False
        self._error: EngineError | None = None
        self._begun = False
        self.status = 0
        self.headers: Headers = []
        self.complete = False
        self.keep_alive = False
        self.arrived_at, self.received = 0.0, 0
        self.first_pause: tuple[float, int] | None = None
        connection.exchange = self
        self._timer = self._loop.call_at(began + first_s, self._tick)

    async def __anext__(self) -> bytes:
        """Return the next chunk. Raises `EngineTimeout` before the first byte, `StreamInterrupted` after it."""
        while not self._parts:
            if self._error is not None:
                raise self._error
            if self.complete:
                raise StopAsyncIteration
            self._waiter = self._loop.create_future()
            await self._waiter
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts, self._unread = [], 0
        if self._paused:
            self._paused = False
            self.connection.transport.resume_reading()
        return data

    async def arrives_within(self, seconds: float) -> bool:
        """Wait for the next chunk, the end or an error; False if none comes in time."""
        if not (self._parts or self.complete or self._error is not None):
            self._waiter = self._loop.create_future()
            timer = self._loop.call_later(seconds, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
        return bool(self._parts) or self.complete or self._error is not None

    def end(self) -> bool:
        """Leave the connection; return True if it can carry another exchange."""
        self._timer.cancel()
        self.connection.exchange = None
        return self.complete and self.keep_alive and not self.connection.closed and not self._paused

    # --- connection events ---

    def lost(self, error: Exception | None) -> None:
        """Handle a closed connection."""
        if self._to_the_end and error is None:
            self.on_message_complete()
        elif not self.complete:
            self.fail(EngineUnavailable if self._begun else ConnectionLost, type(error).__name__ if error else "closed")

    # --- parser callbacks ---

    def on_message_begin(self) -> None:
        self._begun = True
        if self.complete:  # more data than requested
            self.keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head.done():
            self.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if self.complete:
            return
        if status not in _STATUSES:
            self.fail(EngineUnavailable, f"invalid HTTP: status {status}")
            return
        if status < 200:  # an interim response such as 100 Continue: the final one follows
            self.headers.clear()
            return
        self.status, self.keep_alive = status, self.parser.should_keep_alive()
        names = {name.lower() for name, _ in self.headers}
        self._to_the_end = status not in (204, 304) and names.isdisjoint(("content-length", "transfer-encoding"))
        if not self.head.done():
            self.head.set_result(None)

    def on_body(self, body: bytes) -> None:
        if self.complete:
            return
        first, self.head_bytes = self._last == 0.0, 0
        self._last, self.arrived_at = self._loop.time(), time.perf_counter()
        if first and self._deadline() < self._timer.when():
            self._timer.cancel()
            self._timer = self._loop.call_at(self._deadline(), self._tick)
        self._parts.append(body)
        size = len(body)
        self._unread += size
        self.received += size
        if self._unread > _MAX_UNREAD and not self._paused:
            self._paused = True
            self.first_pause = self.first_pause or (self.arrived_at, self.received)
            self.connection.transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self.status:
            self.complete = True
            self._wake()

    # --- timeouts ---

    def _deadline(self) -> float:
        """Return the deadline of the current wait."""
        if self._last == 0.0:
            return self._began + self._first_s
        end = self._began + self._total_s
        return end if self._stall_s is None else min(end, self._last + self._stall_s)

    def _tick(self) -> None:
        now = self._loop.time()
        if self._parts and self._last:  # the reader is slow, not the engine
            self._last = now
        if now < self._deadline():
            self._timer = self._loop.call_at(self._deadline(), self._tick)
        elif not self.complete:
            outlasts = self._last and now >= self._began + self._total_s
            self.fail(AnswerTooLong if outlasts else EngineTimeout, "too late")

    def fail(self, kind: type[EngineError], what: str) -> None:
        """Fail the exchange, with an error of this kind if no byte of the body has come; readers get it after the
        chunks received so far."""
        if kind is AnswerTooLong:
            self._error = AnswerTooLong(f"the answer takes longer than {self._total_s:g} s")
        elif self._last:
            self._error = StreamInterrupted(f"{what} after the first byte")
        elif kind is EngineTimeout:
            self._error = EngineTimeout(f"no first byte within {self._first_s:g} s")
        elif self.head.done():
            self._error = StreamInterrupted(f"{what} after the headers")
        else:
            self._error = kind(f"{what} before the first byte")
        if not self.head.done():
            self.head.set_exception(self._error)
            self.head.exception()  # mark as retrieved, in case no reader is left
        self._wake()
        self.connection.transport.abort()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
