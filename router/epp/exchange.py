"""The messages of one stream, and the request in them as an ASGI server would give it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote

import orjson
from starlette.types import Message, Scope

from draftpick.engines.http.client import Headers
from draftpick.router.epp import messages
from draftpick.router.epp.messages import BodyMode
from draftpick.router.errors import ReceiveTimedOut, RequestError
from draftpick.router.http.app import error_headers
from draftpick.router.request.api_forms import error_body


class Stream(Protocol):
    """A stream of messages: what is used of `grpc.aio.ServicerContext`."""

    def read(self) -> Awaitable[Any]: ...
    def write(self, message: bytes) -> Awaitable[None]: ...


class Left(Exception):
    """The gateway ended the stream before the request was complete."""


@dataclass(frozen=True, slots=True)
class Change:
    """What the engine gets: headers that are set and removed, the body, whether it differs, and the endpoints."""

    headers: Headers
    removed: Sequence[str]
    body: bytes
    other_body: bool = False
    endpoints: str | None = None


class Exchange:
    """One stream after its first message. `scope`: of the request, as in ASGI; `request_id`: for errors, once known."""

    def __init__(self, stream: Stream, end: object, first: messages.Request, timeout_s: float) -> None:
        """`end`: what is read at the end of a stream; `timeout_s`: for a whole request."""
        self._stream, self._end, self.first = stream, end, first
        self._until = asyncio.get_running_loop().time() + timeout_s
        self._timeout_s = timeout_s
        self._mode, self._answer_mode = messages.body_modes(first)
        self._complete = bool(first.request_headers.end_of_stream)
        self._trailers = False
        self.scope, self.request_id, self.write = _scope(first), "", stream.write

    @property
    def no_body(self) -> bool:
        """True if the request has a body, but its gateway does not show it before it is sent."""
        return not self._complete and self._mode not in (BodyMode.BUFFERED, BodyMode.FULL_DUPLEX_STREAMED)

    async def receive(self) -> Message:
        """The next part of the body, as of an ASGI server. Raises `ReceiveTimedOut`."""
        if self._complete:
            return {"type": "http.request", "body": b"", "more_body": False}
        streamed = self._mode == BodyMode.FULL_DUPLEX_STREAMED
        if not streamed:
            await self.write(messages.change("request_headers"))
        try:
            async with asyncio.timeout_at(self._until):
                request = await self._stream.read()
        except TimeoutError:
            raise ReceiveTimedOut(f"no complete request within {self._timeout_s:g} s") from None
        if request is self._end:
            return {"type": "http.disconnect"}
        self._trailers = messages.phase_of(request) == "request_trailers"
        more = streamed and not self._trailers and not request.request_body.end_of_stream
        return {"type": "http.request", "body": request.request_body.body, "more_body": more}

    async def answer(self, change: Change) -> None:
        """Let the request go on, with changes."""
        headers = change.headers
        if change.other_body:
            headers = [*headers, ("content-length", str(len(change.body)))]
        buffered = self._mode == BodyMode.BUFFERED and not self._complete
        phase: messages.Phase = "request_body" if buffered else "request_headers"
        body = change.body if buffered and change.other_body else None
        await self.write(messages.change(phase, headers, change.removed, body, change.endpoints))
        if buffered or self._complete:
            return
        if change.body or not self._trailers:
            for piece in messages.streamed("request_body", change.body, last=not self._trailers):
                await self.write(piece)
        if self._trailers:
            await self.write(messages.trailers("request_trailers"))

    async def refuse(self, status: int, error: RequestError) -> None:
        """Answer the client with an error."""
        body = orjson.dumps(error_body(self.scope["path"], error))
        headers = [("content-type", "application/json"), *error_headers(self.scope, error, self.request_id)]
        await self.write(messages.refusal(status, headers, body, f"draftpick_{error.code or error.type}"))

    async def skip(self) -> None:
        """Let the request and its answer pass as they are."""
        await self.let_pass(self.first)
        async for request in self.rest():
            await self.let_pass(request)

    async def rest(self) -> AsyncIterator[messages.Request]:
        """The messages that are left."""
        while (request := await self._stream.read()) is not self._end:
            yield request

    async def let_pass(self, request: messages.Request) -> None:
        """Let what a message brings pass as it is."""
        phase = messages.phase_of(request)
        if phase == "request_trailers" or phase == "response_trailers":  # narrows the type
            await self.write(messages.trailers(phase))
        elif phase == "response_body" and self._answer_mode == BodyMode.FULL_DUPLEX_STREAMED:
            part = request.response_body
            for piece in messages.streamed(phase, part.body, last=part.end_of_stream):
                await self.write(piece)
        elif phase is not None:
            await self.write(messages.change(phase))


def _scope(first: messages.Request) -> Scope:
    """The request of its headers, as an ASGI server gives it."""
    fields = messages.raw_headers(first.request_headers)
    pseudo = {name: value for name, value in fields if name.startswith(b":")}
    path, _, query = pseudo.get(b":path", b"").partition(b"?")
    host = [(b"host", pseudo[b":authority"])] if b":authority" in pseudo else []
    return {
        "type": "http",
        "method": pseudo.get(b":method", b"").decode("latin-1"),
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "query_string": query,
        "headers": [*host, *(field for field in fields if not field[0].startswith(b":"))],
    }
