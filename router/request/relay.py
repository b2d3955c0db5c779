"""Relays an engine's answer to the client: complete, or as a stream from its first content on."""

from collections.abc import Callable

import orjson

from draftpick.engines.errors import StreamInterrupted
from draftpick.engines.http.client import EngineResponse, Headers
from draftpick.engines.http.server import PROFILING
from draftpick.router.headers import ARM, ATTEMPTS, POLICY, REQUEST_ID
from draftpick.router.openai_request import TERMINATED_PATHS
from draftpick.router.request.meter import EventStream, Meter
from draftpick.router.request.state import RequestState, ResponseSink
from draftpick.router.types import Status

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
_REFUSALS = frozenset({429})


async def relay(
    state: RequestState, answer: EngineResponse, sink: ResponseSink, meter: Meter, can_retry: Callable[[], bool]
) -> Status:
    """Send an answer to the client, but no part of an error after which another engine may be tried.

    Raises `StreamInterrupted` for an invalid or interrupted answer, `EngineTimeout` for one that does not start.
    """
    refused = answer.status >= 500 or answer.status in _REFUSALS
    if (refused and can_retry()) or (state.started and answer.status >= 400):
        return "engine_error"
    headers = [
        (k, v) for k, v in answer.headers if (name := k.lower()) not in _NOT_RETURNED and not name.startswith(_CORS)
    ]
    headers += ((REQUEST_ID, state.client_request.request_id), (ATTEMPTS, str(state.number)))
    if state.client_request.show_routing:
        headers += ((ARM, state.decision.arm), (POLICY, state.decision.policy))
    meter.arrivals = answer.chunks
    kind = next((v for k, v in headers if k.lower() == "content-type"), "")
    generated = answer.status < 400 and state.client_request.request.path in TERMINATED_PATHS
    if kind.startswith("text/event-stream"):
        await _relay_events(state, answer, sink, meter, headers)
        if meter.failed:
            return "broken"
    else:
        body = b"".join([chunk async for chunk in answer.chunks])
        is_json = meter.observe_body(body)
        if generated and (not is_json or state.client_request.request.stream):
            raise StreamInterrupted("the answer does not have the requested format")
        state.started = True
        await sink.send_complete(answer.status, headers, body)
    if refused:
        return "engine_error"
    return "ok" if answer.status < 400 else "client_error"


async def _relay_events(
    state: RequestState, answer: EngineResponse, sink: ResponseSink, meter: Meter, headers: Headers
) -> None:
    stream = EventStream(meter, hide_usage=state.client_request.request.hide_usage, resume_state=state.resume)
    generated = state.client_request.request.path in TERMINATED_PATHS
    held = b""
    async for chunk in answer.chunks:
        data = stream.feed(chunk)
        if not data:
            continue
        if not state.started:
            # Until the first content another engine can still answer: hold back all events before it.
            held, data = b"", held + data
            if generated and meter.ttft_s is None and len(data) < _HELD_BYTES:
                if meter.failed:
                    raise StreamInterrupted("the stream started with an error")
                if not meter.terminated:
                    held = data
                    continue
            state.started = True
            await sink.start(answer.status, headers)
        await sink.write(data)
    if not meter.terminated and generated:
        raise StreamInterrupted("the stream ended without its terminator")
    if rest := held + stream.end():
        if not state.started:
            state.started = True
            await sink.start(answer.status, headers)
        await sink.write(rest)


BROKEN_EVENT = b"data: %s\n\n" % orjson.dumps(
    {
        "error": {
            "message": "the engine stopped in the middle of its answer",
            "type": "api_connection_error",
            "param": None,
            "code": "engine_broken",
        }
    }
)
