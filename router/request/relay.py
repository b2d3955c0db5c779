"""Relays an engine's answer to the client: complete, or as a stream from its first content on."""

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from io import BytesIO

from draftpick.engines.errors import StreamInterrupted
from draftpick.engines.http.client import EngineResponse
from draftpick.engines.http.inflate import Inflate
from draftpick.router.headers import ARM, ATTEMPTS, CLIENT_REQUEST_ID, POLICY, REQUEST_ID, SESSION
from draftpick.router.openai_request import RESPONSES, TERMINATED_PATHS
from draftpick.router.request.api_forms import CONTENT, body_as_event, error_status, read_error_event, told_error
from draftpick.router.request.forwarded_headers import headers_for_client
from draftpick.router.request.meter import EventStream, Meter
from draftpick.router.request.state import RequestState, ResponseSink
from draftpick.router.request.verdict import CRASHED, OK, RESUME_REJECTED, Verdict, judge_broken_event, judge_status

_HELD_BYTES = 2**16
_HEADERS_AFTER_S = 0.5
"""Wait for an engine's first event, which may be an error with a status, before the client gets the status 200."""
_COMMENTS = re.compile(rb"(?:(?::[^\r\n]*(?>\r\n|\r|\n))+(?>\r\n|\r|\n))+")
_INFLATED = ("gzip", "x-gzip", "deflate")
_MAX_ERROR_BYTES = 2**20
_JSON = ("content-type", "application/json")
_OF_KEYS = frozenset({401, 403, 407})
"""Of a client whose key the router has read, this is about the router's own: `engines[].api_key`."""
TryAgain = Callable[[Verdict, bytes], bool]
"""Whether another engine is to answer after an error with this verdict and body. The body of a long one is empty."""


class Relay:
    """Sends the answer of one attempt, by the engine at `url`, to the client.

    Until the first content another engine can still answer, so no event is sent before it. Status, headers and comments
    are sent earlier: once the engine sends a comment, or nothing for `_HEADERS_AFTER_S`. If another engine answers
    then, a comment names it, and an error becomes an event.
    """

    def __init__(
        self,
        state: RequestState,
        answer: EngineResponse,
        url: str,
        sink: ResponseSink,
        meter: Meter,
        try_again: TryAgain,
        max_bytes: int,
    ) -> None:
        """`max_bytes`: of an event, and of a complete answer; a longer one is passed on unread."""
        self._state, self._answer, self._sink, self._meter = state, answer, sink, meter
        self._try_again, self._max_bytes = try_again, max_bytes
        self._chunks: AsyncIterator[bytes] = answer.chunks
        self._headers = headers_for_client(answer.headers, url)
        self._path = state.client_request.request.path

    async def run(self) -> Verdict:
        """Send the answer, but no part of an error after which another engine is to answer.

        Raises `StreamInterrupted` for an invalid or interrupted answer, `EngineTimeout` for one that does not start.
        """
        state, answer = self._state, self._answer
        if answer.status in _OF_KEYS and state.client_request.authorized and not state.started:
            return CRASHED
        if answer.status >= 400:
            verdict = judge_status(answer.status)
            if state.started:
                return RESUME_REJECTED if verdict.fault == "client" else verdict
            if verdict.retry and self._try_again(verdict, b""):
                return verdict
        self._meter.arrivals = answer.chunks
        kind = ""
        for name, value in self._headers:
            if name == "content-type":
                kind = value.lower()
            elif name == "content-encoding" and value.lower() in _INFLATED:
                self._chunks = _inflate(answer.chunks)
                self._headers = [one for one in self._headers if one[0] != name]
        request_id = state.client_request.request_id
        self._headers += ((REQUEST_ID, request_id), (CLIENT_REQUEST_ID, request_id), (ATTEMPTS, str(state.number)))
        if state.client_request.show_routing:
            self._headers += ((ARM, state.decision.arm), (POLICY, state.decision.policy))
        if state.turn is not None:
            self._headers += ((SESSION, state.turn.placement),)
        if answer.status < 400 and kind.startswith("text/event-stream"):
            return await self._send_events()
        return await self._send_complete()

    async def _send_complete(self) -> Verdict:
        body, size = BytesIO(), 0
        async for chunk in self._chunks:
            size += body.write(chunk)
            if self._answer.status >= 400:
                if size > _MAX_ERROR_BYTES:
                    raise StreamInterrupted("the error is too long")
            elif size > self._max_bytes:
                return await self._pass_on(body.getvalue())
        return await self._send_body(self._answer.status, body.getvalue())

    async def _pass_on(self, data: bytes) -> Verdict:
        """Pass an answer on in parts, since it is too long to be read first."""
        if not self._state.opened_by:
            await self._start(self._answer.status)
            await self._sink.write(data)
            async for chunk in self._chunks:
                await self._sink.write(chunk)
            return OK
        raise StreamInterrupted("the answer is not a stream")

    async def _send_body(self, status: int, body: bytes) -> Verdict:
        """Send a complete answer, or the error that is its content."""
        state, request = self._state, self._state.client_request.request
        try:
            answer = self._meter.observe_body(body)
        except ValueError as error:
            if status < 400 and request.path in TERMINATED_PATHS:
                raise StreamInterrupted("the answer is not JSON") from error
            answer = None
        else:
            if status < 400 and request.path in TERMINATED_PATHS:
                # An answer with nothing but an error is one, whatever its status says.
                if request.path == RESPONSES and isinstance(answer, dict):
                    self._meter.response_id = answer.get("id")
                complete = not isinstance(answer, dict) or not answer.keys().isdisjoint(CONTENT)
                if not complete and (told := told_error(answer)) is not None:
                    status = error_status(told)
                elif request.stream:
                    raise StreamInterrupted("the answer is not a stream")
        self._meter.http_status = status
        verdict = OK if status < 400 else judge_status(status)
        if verdict is not OK and self._try_again(verdict, body):
            return replace(verdict, retry=True)
        if verdict is OK and state.doubts:
            state.settle_doubts(blame=True)
        if state.opened_by:  # the client has a status already
            state.started = state.error_sent = self._meter.failed = True
            await self._sink.write(body_as_event(self._path, answer, self._meter.num_events))
        else:
            state.started, state.opened_by = True, state.number
            await self._sink.send_complete(status, self._headers, body)
        return replace(verdict, retry=False) if verdict.retry else verdict

    async def _start(self, status: int) -> None:
        """Content follows: from now on no other engine answers."""
        state = self._state
        state.started = True
        if state.doubts:
            state.settle_doubts(blame=True)
        if not state.opened_by:
            state.opened_by = state.number
            await self._sink.start(status, self._headers)
        elif state.opened_by != state.number and state.client_request.show_routing:
            await self._sink.write(f": {ARM}: {state.decision.arm}\n: {ATTEMPTS}: {state.number}\n\n".encode())

    async def _open(self) -> None:
        """Send status and headers ahead of the content."""
        if not self._state.opened_by:
            self._state.opened_by = self._state.number
            await self._sink.start(self._answer.status, self._headers)

    async def _send_events(self) -> Verdict:
        state, meter, sink = self._state, self._meter, self._sink
        hide_usage = state.client_request.request.hide_usage
        stream = EventStream(meter, hide_usage=hide_usage, resume_state=state.resume, max_bytes=self._max_bytes)
        generated = self._answer.status < 400 and self._path in TERMINATED_PATHS
        if not state.opened_by and not await self._answer.chunks.arrives_within(_HEADERS_AFTER_S):
            await self._open()
        held = b""
        async for chunk in self._chunks:
            data = stream.feed(chunk)
            if not data:
                continue
            if not state.started:
                if generated and (found := _COMMENTS.match(data)) is not None:
                    await self._open()
                    await sink.write(found[0])
                    data = data[found.end() :]
                held, data = b"", held + data
                if generated and meter.ttft_s is None and len(data) < _HELD_BYTES:
                    if meter.failed and meter.error_event is not None:
                        status, body = read_error_event(meter.error_event)
                        self._headers = [*(one for one in self._headers if one[0] != "content-type"), _JSON]
                        return await self._send_body(status, body)
                    if not meter.terminated:
                        held = data
                        continue
                await self._start(self._answer.status)
            await sink.write(data)
        rest = held + stream.end()
        if meter.error_event is None and generated and not meter.terminated:
            raise StreamInterrupted("the stream ended without its terminator")
        if not state.started:
            await self._start(self._answer.status)
        if rest:
            await sink.write(rest)
        return OK if meter.error_event is None else judge_broken_event(read_error_event(meter.error_event)[0])


async def _inflate(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The content of a body that an engine, or something before it, compressed unasked."""
    inflate = Inflate()
    async for chunk in chunks:
        try:
            for data in inflate.feed(chunk):
                yield data
        except ValueError as error:
            raise StreamInterrupted(f"the answer is not compressed as it says: {error}") from error
