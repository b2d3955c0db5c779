"""ASGI middleware of an engine: reports the outcome of each request that brings a router's ticket."""

import time
from dataclasses import dataclass
from functools import partial

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from draftpick.engines.reporting.measurements import Measurements
from draftpick.engines.reporting.report import Failure, OutcomeReport
from draftpick.engines.reporting.reporter import Reporter
from draftpick.engines.reporting.ticket import HEADER, Ticket

_HEADER, _REQUEST_ID = HEADER.encode(), b"x-request-id"
_ERROR_EVENTS = (b'data: {"error":', b"event: error")
_BEFORE_CONTENT = (
    b":",
    b"event: response.created",
    b"event: response.in_progress",
    b"event: message_start",
    b"event: ping",
)
_EVENTS = b"text/event-stream"
_MAX_EVENT = 2**14
_INTERNAL_ERROR = 500


class ReportedRequests:
    """Wraps an engine's application. The engine gets the lease's id as `x-request-id`, by which it measures the
    request; without a ticket, or with a forged one, a request passes untouched. `forged`: number of these."""

    def __init__(self, app: ASGIApp, measurements: Measurements, reporter: Reporter) -> None:
        self._app, self._measurements, self._reporter = app, measurements, reporter
        self.forged = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        header = next((v for k, v in scope["headers"] if k == _HEADER), None) if scope["type"] == "http" else None
        if header is None:
            await self._app(scope, receive, send)
            return
        ticket = self._reporter.ticket(header.decode("latin-1"))
        if ticket is None:
            self.forged += 1
            await self._app(scope, receive, send)
            return
        kept = [(k, v) for k, v in scope["headers"] if k not in (_HEADER, _REQUEST_ID)]
        headers = [*kept, (_REQUEST_ID, ticket.lease_id.encode())]
        self._measurements.expect(ticket.lease_id)
        watched = _Watched(receive, send)
        try:
            await self._app({**scope, "headers": headers}, watched.receive, watched.send)
        except Exception:  # an application may raise anything: its server answers 500
            watched.crashed = True
            raise
        finally:
            self._reporter.put(ticket.router, partial(self._report, ticket, watched, watched.ended()))

    def _report(self, ticket: Ticket, watched: "_Watched", error: Failure | None) -> OutcomeReport:
        measured = self._measurements.take(ticket.lease_id)
        return OutcomeReport(ticket.lease, watched.status, error, watched.e2e_s, watched.ttft_s, **measured)


@dataclass(slots=True)
class _Watched:
    """One request as it passes. `arrived`: its last byte; `first`: the first content of its answer."""

    receive_next: Receive
    send_next: Send
    status: int | None = None
    arrived: float | None = None
    first: float | None = None
    last: float | None = None
    streams: bool = False
    complete: bool = False
    gone: bool = False
    crashed: bool = False
    failed: bool = False

    @property
    def e2e_s(self) -> float | None:
        return None if self.last is None or self.arrived is None else self.last - self.arrived

    @property
    def ttft_s(self) -> float | None:
        """Of a stream alone: the first bytes of a whole answer are its last ones."""
        if not self.streams or self.first is None or self.arrived is None:
            return None
        return self.first - self.arrived

    async def receive(self) -> Message:
        message = await self.receive_next()
        if message["type"] == "http.disconnect":
            self.gone = True
        elif not message.get("more_body", False):
            self.arrived = time.perf_counter()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            kinds = (v for k, v in message.get("headers", ()) if k.lower() == b"content-type")
            self.streams = next(kinds, b"").startswith(_EVENTS)
        else:
            body, self.last = message.get("body", b""), time.perf_counter()
            if body.startswith(_ERROR_EVENTS):
                self.failed, self.status = True, _code(body)
            elif body and self.first is None and not body.startswith(_BEFORE_CONTENT):
                self.first = self.last
            self.complete = not message.get("more_body", False)
        await self.send_next(message)

    def ended(self) -> Failure | None:
        """How it ended, if not with a complete answer; sets the status of one that crashed before any."""
        if self.failed:
            return None if self.first is None else "broken"
        if self.complete:
            return None
        if self.crashed and self.status is None:
            self.status = _INTERNAL_ERROR
            return None
        return "cancelled" if self.gone else "broken"


def _code(event: bytes) -> int:
    """The HTTP status in an error event."""
    try:
        code = orjson.loads(event[:_MAX_EVENT].partition(b"data: ")[2].split(b"\n", 1)[0])["error"]["code"]
    except (ValueError, LookupError, TypeError):
        return _INTERNAL_ERROR
    return code if isinstance(code, int) and 400 <= code <= 599 else _INTERNAL_ERROR
