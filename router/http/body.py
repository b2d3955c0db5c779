"""Reads request bodies: bounded each and in total, decompressed, and never held twice."""

import asyncio
import zlib
from collections import deque
from collections.abc import AsyncIterator
from io import BytesIO
from types import TracebackType

from starlette.types import Message

from draftpick.router.config.router_config import RouterConfig
from draftpick.router.errors import Overloaded, PayloadTooLarge, UnsupportedEncoding
from draftpick.router.http.asgi import HttpRequest

_SMALL = 2**16
"""Bodies up to this size are not counted: the server buffers as much for each connection anyway."""
_SLICE = 2**20
"""Bytes reserved, and decompressed, at a time if the size of a body is not known in advance."""
_ENCODINGS = frozenset({"gzip", "x-gzip", "deflate"})


class BodyBudget:
    """The memory for large bodies, shared by all connections; requests that find it used up wait in order."""

    def __init__(self, config: RouterConfig) -> None:
        self.max_body_bytes = config.max_body_bytes
        self.free = max(config.max_total_body_bytes, config.max_body_bytes)
        self._timeout_s, self._retry_after_s = config.admission.queue_timeout_s, config.admission.retry_after_s
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def body(self, http_request: HttpRequest) -> "_HeldBody":
        """An async context manager that reads the body; see `_HeldBody`."""
        return _HeldBody(self, http_request)

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


class _HeldBody:
    """`async with` yields the body, or None if the client has gone or is too slow; its end gives the memory back.

    Raises `PayloadTooLarge`, `UnsupportedEncoding` or `Overloaded`.
    """

    __slots__ = ("_budget", "_request", "_reserved")

    def __init__(self, budget: BodyBudget, request: HttpRequest) -> None:
        self._budget, self._request, self._reserved = budget, request, 0

    async def __aenter__(self) -> bytes | None:
        request = self._request
        encoding = request.header_values.get("content-encoding", "identity").strip().lower() or "identity"
        if encoding != "identity" and encoding not in _ENCODINGS:
            raise UnsupportedEncoding(f"bodies with the encoding {encoding[:40]!r} are not read: send gzip or deflate")
        try:
            declared = int(request.header_values.get("content-length", 0))
        except ValueError:
            declared = 0
        if declared > self._budget.max_body_bytes:
            raise self._too_large()
        if declared > _SMALL and encoding == "identity":
            await self._budget.reserve(declared)
            self._reserved = declared
        try:
            if encoding == "identity":
                message = await request.receive()
                if message["type"] == "http.request" and not message.get("more_body", False):
                    body: bytes = message.get("body", b"")
                    if len(body) <= self._budget.max_body_bytes:
                        return body
                    raise self._too_large()
                return await self._read(_chunks(request, message))
            return await self._read(_decompressed(_chunks(request), encoding))
        except BaseException:  # a cancellation, too, gives the bytes back
            await self.__aexit__(None, None, None)
            raise

    async def _read(self, chunks: AsyncIterator[bytes | None]) -> bytes | None:
        # Growing it copies nothing, and neither does `getvalue`: a list of parts would be held twice at its end.
        body, size = BytesIO(), 0
        async for chunk in chunks:
            if chunk is None:
                return None
            size += len(chunk)
            if size > self._budget.max_body_bytes:
                raise self._too_large()
            while size > max(self._reserved, _SMALL):
                self._budget.grow(_SLICE)
                self._reserved += _SLICE
            body.write(chunk)
        return body.getvalue()

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body is larger than {self._budget.max_body_bytes} bytes", code="body_too_large")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._reserved:
            self._budget.release(self._reserved)
            self._reserved = 0


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
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # of gzip or zlib
    async for chunk in chunks:
        if chunk is None:
            yield None
            return
        try:
            while chunk:
                yield inflate.decompress(chunk, _SLICE)
                chunk = inflate.unconsumed_tail
                await asyncio.sleep(0)
        except zlib.error:
            raise UnsupportedEncoding(f"the body is not {encoding}") from None
    if not inflate.eof:
        raise UnsupportedEncoding(f"the body is not complete {encoding}")
