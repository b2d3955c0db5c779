"""Relays an engine's answer to the client: complete, or as a stream from its first content on."""

import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from draftpick.engines.errors import StreamInterrupted
from draftpick.engines.http.client import EngineResponse, Headers
from draftpick.engines.http.server import PROFILING
from draftpick.router.headers import ARM, ATTEMPTS, POLICY, REQUEST_ID
from draftpick.router.openai_request import RESPONSES, TERMINATED_PATHS
from draftpick.router.request.api_forms import error_status, read_error_event
from draftpick.router.request.meter import EventStream, Meter
from draftpick.router.request.state import RequestState, ResponseSink
from draftpick.router.request.verdict import OK, RESUME_REJECTED, Verdict, judge_broken_event, judge_status

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "expect",
        "accept-encoding",
    }
)
NOT_SENT = _HOP_BY_HOP | {"origin", PROFILING.decode()}
"""Request headers that are not forwarded. No client may pass for an engine's measurement of itself."""
_NOT_RETURNED = _HOP_BY_HOP | {"date", "server"}
_CORS = "access-control-"
"""Headers of an engine's answer that are not forwarded: those of its connection, and CORS."""
_HELD_BYTES = 2**16
_INFLATED = ("gzip", "x-gzip", "deflate")
_JSON = ("content-type", "application/json")
TryAgain = Callable[[Verdict, bytes], bool]
"""Whether another engine is to answer after an error with this verdict and body. The body of a long one is empty."""


async def relay(
    state: RequestState, answer: EngineResponse, sink: ResponseSink, meter: Meter, try_again: TryAgain
) -> Verdict:
    """Send an answer to the client, but no part of an error after which another engine is to answer.

    Raises `StreamInterrupted` for an invalid or interrupted answer, `EngineTimeout` for one that does not start.
    """
    if answer.status >= 400:
        verdict = judge_status(answer.status)
        if state.started:
            return RESUME_REJECTED if verdict.fault == "client" else verdict
        if verdict.retry and try_again(verdict, b""):
            return verdict
    headers: Headers = []
    chunks: AsyncIterator[bytes] = answer.chunks
    kind = ""
    meter.arrivals = answer.chunks
    for name, value in answer.headers:
        lower = name.lower()
        if lower in _NOT_RETURNED or lower.startswith(_CORS):
            continue
        if lower == "content-type":
            kind = value.lower()
        elif lower == "content-encoding" and value.lower() in _INFLATED:
            chunks = _inflate(chunks)
            continue
        headers.append((name, value))
    headers += ((REQUEST_ID, state.client_request.request_id), (ATTEMPTS, str(state.number)))
    if state.client_request.show_routing:
        headers += ((ARM, state.decision.arm), (POLICY, state.decision.policy))
    if answer.status < 400 and kind.startswith("text/event-stream"):
        return await _relay_events(state, answer.status, headers, chunks, sink, meter, try_again)
    body = b"".join([chunk async for chunk in chunks])
    return await _relay_complete(state, answer.status, headers, body, sink, meter, try_again)


async def _relay_complete(
    state: RequestState,
    status: int,
    headers: Headers,
    body: bytes,
    sink: ResponseSink,
    meter: Meter,
    try_again: TryAgain,
) -> Verdict:
    request = state.client_request.request
    try:
        answer = meter.observe_body(body)
    except ValueError as error:
        if status < 400 and request.path in TERMINATED_PATHS:
            raise StreamInterrupted("the answer is not JSON") from error
    else:
        if status < 400 and request.path in TERMINATED_PATHS:
            # An answer with nothing but an error is one, whatever its status says.
            if request.path == RESPONSES and isinstance(answer, dict):
                meter.response_id = answer.get("id")
            told = answer.get("error") if isinstance(answer, dict) else None
            if isinstance(told, dict) and answer.keys().isdisjoint(("choices", "output", "content")):
                status = error_status(told)
            elif request.stream:
                raise StreamInterrupted("the answer is not a stream")
    meter.http_status = status
    verdict = OK if status < 400 else judge_status(status)
    if verdict is not OK and try_again(verdict, body):
        return replace(verdict, retry=True)
    if verdict is OK and state.doubts:
        state.settle_doubts(blame=True)
    state.started = True
    await sink.send_complete(status, headers, body)
    return replace(verdict, retry=False) if verdict.retry else verdict


async def _relay_events(
    state: RequestState,
    status: int,
    headers: Headers,
    chunks: AsyncIterator[bytes],
    sink: ResponseSink,
    meter: Meter,
    try_again: TryAgain,
) -> Verdict:
    stream = EventStream(meter, hide_usage=state.client_request.request.hide_usage, resume_state=state.resume)
    generated = state.client_request.request.path in TERMINATED_PATHS
    held = b""
    async for chunk in chunks:
        data = stream.feed(chunk)
        if not data:
            continue
        if not state.started:
            # Until the first content another engine can still answer: hold back all events before it.
            held, data = b"", held + data
            if generated and meter.ttft_s is None and len(data) < _HELD_BYTES:
                if meter.failed and meter.error_event is not None:
                    status, body = read_error_event(meter.error_event)
                    headers = [*(one for one in headers if one[0].lower() != "content-type"), _JSON]
                    return await _relay_complete(state, status, headers, body, sink, meter, try_again)
                if not meter.terminated:
                    held = data
                    continue
            if state.doubts:
                state.settle_doubts(blame=True)
            state.started = True
            await sink.start(status, headers)
        await sink.write(data)
    if meter.error_event is None and generated and not meter.terminated:
        raise StreamInterrupted("the stream ended without its terminator")
    if rest := held + stream.end():
        if not state.started:
            state.started = True
            await sink.start(status, headers)
        await sink.write(rest)
    return OK if meter.error_event is None else judge_broken_event(read_error_event(meter.error_event)[0])


async def _inflate(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The content of a body that an engine, or something before it, compressed unasked."""
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
    async for chunk in chunks:
        try:
            data = inflate.decompress(chunk)
        except zlib.error as error:
            raise StreamInterrupted(f"the answer is not compressed as it says: {error}") from error
        if data:
            yield data
