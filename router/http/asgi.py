"""ASGI requests, their bodies, and answers.

Bodies are bounded each and in total, decompressed, and never held twice.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO

from starlette.types import Message, Receive, Scope, Send

from draftpick.engines.http.client import Headers
from draftpick.engines.http.inflate import Inflate
from draftpick.engines.http.json_values import dumps
from draftpick.router.config.router_config import RouterConfig
from draftpick.router.errors import BadRequest, Overloaded, PayloadTooLarge, UnsupportedEncoding

_MAX_HEADERS = 128
_DOTS = frozenset({".", ".."})
_SMALL = 2**16
"""Bodies up to this size are not counted: the server buffers as much for each connection anyway."""
_SLICE = 2**20
"""Bytes reserved at a time if the size of a body is not known in advance."""
_WITHOUT_BODY = frozenset({204, 304})
_IDENTITY, _ENCODINGS = "identity", frozenset({"gzip", "x-gzip", "deflate"})


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request before its body is read. `headers`: names in lower case; `header_values`: the last value by name.

    `target`: path and query as sent (percent-encoded), below the route prefix, as is `path`.
    """

    scope: Scope
    receive: Receive
    accepted: float
    path: str
    headers: Headers
    header_values: dict[str, str]
    target: str = ""

    @classmethod
    def from_scope(cls, scope: Scope, receive: Receive, accepted: float, config: RouterConfig) -> "HttpRequest":
        """Raises `PayloadTooLarge` for a long URL or too many headers, `BadRequest` for an invalid path."""
        raw, query, prefix = scope["headers"], scope.get("query_string", b""), scope.get("root_path", "")
        if len(scope["path"]) + len(query) > config.max_url_bytes:
            raise PayloadTooLarge(f"the URL is longer than {config.max_url_bytes} bytes", code="url_too_long")
        if len(raw) > _MAX_HEADERS or sum(len(k) + len(v) for k, v in raw) > config.max_header_bytes:
            raise PayloadTooLarge(
                f"more than {_MAX_HEADERS} headers or {config.max_header_bytes} bytes of them",
                code="headers_too_large",
            )
        headers = [(k.decode("latin-1").lower(), v.decode("latin-1")) for k, v in raw]
        path: str = scope["path"].removeprefix(prefix)
        if not path.startswith("/"):
            raise BadRequest("the path must begin with /", code="bad_path")
        if "/." in path and not _DOTS.isdisjoint(path.split("/")):  # an engine would leave the path that was checked
            raise BadRequest("the path must not have . or .. in it", code="bad_path")
        target: str = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1").split("?")[0]
        target = target.removeprefix(prefix) + (f"?{query.decode('latin-1')}" if query else "")
        return cls(scope, receive, accepted, path, headers, dict(headers), target)


class BodyBudget:
    """The memory for large bodies, shared by all connections; requests that find it used up wait in order."""

    def __init__(self, config: RouterConfig) -> None:
        self.max_body_bytes = config.max_body_bytes
        self.free = max(config.max_total_body_bytes, config.max_body_bytes)
        self._timeout_s, self._retry_after_s = config.admission.queue_timeout_s, config.admission.retry_after_s
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def body(self, request: HttpRequest) -> AsyncIterator[bytes | None]:
        """Read a body; None if the client has gone or is too slow. The end of the block gives its memory back.

        Raises `PayloadTooLarge`, `UnsupportedEncoding` or `Overloaded`.
        """
        encoding = request.header_values.get("content-encoding", "").strip().lower() or _IDENTITY
        if encoding != _IDENTITY and encoding not in _ENCODINGS:
            raise UnsupportedEncoding(f"bodies with the encoding {encoding[:40]!r} are not read: send gzip or deflate")
        try:
            declared = int(request.header_values.get("content-length", 0))
        except ValueError:
            declared = 0
        if declared > self.max_body_bytes:
            raise self._too_large()
        reserved = declared if declared > _SMALL and encoding == _IDENTITY else 0
        if reserved:
            await self.reserve(reserved)
        try:
            message = await request.receive() if encoding == _IDENTITY else None
            if message is not None and message["type"] == "http.request" and not message.get("more_body", False):
                body: bytes | None = message.get("body", b"")
                if len(body or b"") > self.max_body_bytes:
                    raise self._too_large()
            else:
                chunks = _chunks(request, message)
                plain = chunks if message else _decompressed(self._bounded(chunks), encoding)
                body, more = await self._read(plain, reserved)
                reserved += more
            yield body
        finally:
            if reserved:
                self.release(reserved)

    async def _read(self, chunks: AsyncIterator[bytes | None], reserved: int) -> tuple[bytes | None, int]:
        """A body, None if the client disconnects, and the bytes reserved for it beside those that are."""
        # Growing it copies nothing, and neither does `getvalue`: a list of parts would be held twice at its end.
        body, size, more = BytesIO(), 0, 0
        try:
            async for chunk in chunks:
                if chunk is None:
                    return None, more
                size += len(chunk)
                if size > self.max_body_bytes:
                    raise self._too_large()
                while size > max(reserved + more, _SMALL):
                    self.grow(_SLICE)
                    more += _SLICE
                body.write(chunk)
        except BaseException:  # a cancellation, too, gives the bytes back
            self.release(more)
            raise
        return body.getvalue(), more

    async def _bounded(self, chunks: AsyncIterator[bytes | None]) -> AsyncIterator[bytes | None]:
        """The parts of a compressed body, which may be long though its content is short."""
        size = 0
        async for chunk in chunks:
            size += len(chunk or b"")
            if size > self.max_body_bytes:
                raise self._too_large()
            yield chunk

    async def reserve(self, size: int) -> None:
        """Take `size` bytes, waiting for them if needed. Raises `Overloaded`."""
        if not self._waiting and size <= self.free:
            self.free -= size
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, waiting))
        try:
            async with asyncio.timeout(self._timeout_s):
                await waiting
        except BaseException as error:  # a cancellation, too, gives the bytes back
            if waiting.done() and not waiting.cancelled():
                self.release(size)  # it was admitted while leaving
            else:
                self._waiting = deque(one for one in self._waiting if one[1] is not waiting)
                self.release(0)
            if isinstance(error, TimeoutError):
                raise self._overloaded() from None
            raise

    def grow(self, size: int) -> None:
        """Take `size` more bytes without waiting: who holds some already must not. Raises `Overloaded`."""
        if size > self.free:
            raise self._overloaded()
        self.free -= size

    def release(self, size: int) -> None:
        """Give bytes back, to those that wait."""
        self.free += size
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self.free):
            wanted, waiting = self._waiting.popleft()
            if not waiting.done():
                self.free -= wanted
                waiting.set_result(None)

    def _overloaded(self) -> Overloaded:
        return Overloaded("too many large request bodies", retry_after_s=self._retry_after_s)

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body is larger than {self.max_body_bytes} bytes", code="body_too_large")


async def _chunks(request: HttpRequest, message: Message | None = None) -> AsyncIterator[bytes | None]:
    """The parts of a body; None if the client disconnects."""
    while True:
        message = message or await request.receive()
        if message["type"] == "http.disconnect":
            yield None
            return
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return
        message = None


async def _decompressed(chunks: AsyncIterator[bytes | None], encoding: str) -> AsyncIterator[bytes | None]:
    """The content of a compressed body in slices, so that none blocks the event loop for long.

    Raises `UnsupportedEncoding` for anything else.
    """
    inflate = Inflate()
    async for chunk in chunks:
        if chunk is None:
            yield None
            return
        try:
            for data in inflate.feed(chunk):
                yield data
                await asyncio.sleep(0)
        except ValueError:
            raise UnsupportedEncoding(f"the body is not {encoding}") from None
    if not inflate.complete:
        raise UnsupportedEncoding(f"the body is not complete {encoding}")


class AsgiSink:
    """Sends an answer through ASGI. `started`: status and headers were sent, or are due; `finished`: all was;
    `request_id`: for errors."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = self.finished = False
        self.request_id = ""

    async def start(self, status: int, headers: Headers) -> None:
        raw = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers]
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def send_complete(self, status: int, headers: Headers, body: bytes) -> None:
        length = [] if status in _WITHOUT_BODY else [("content-length", str(len(body)))]
        await self.start(status, [*headers, *length])
        await self.finish(body)

    async def finish(self, body: bytes = b"") -> None:
        """End an answer, unless it has ended, with the rest of its body."""
        if not self.finished:
            self.finished = True
            await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def json(self, status: int, content: dict[str, object], headers: Headers | None = None) -> None:
        await self.send_complete(status, [("content-type", "application/json"), *(headers or [])], dumps(content))


class BufferingSink(AsgiSink):
    """For a client of HTTP/1.0, which knows no chunks: it gets an answer in parts at once, at its end."""

    def __init__(self, send: Send) -> None:
        super().__init__(self._keep)
        self._send_now, self._messages = send, list[Message]()

    async def _keep(self, message: Message) -> None:
        self._messages.append(message)
        if not message.get("more_body", True):
            start, *parts = self._messages
            body = b"".join(part["body"] for part in parts)
            if all(name != b"content-length" for name, _ in start["headers"]):
                start["headers"].append((b"content-length", b"%d" % len(body)))
            await self._send_now(start)
            await self._send_now({**message, "body": body})
