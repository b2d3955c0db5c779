"""What an engine's middleware reports of each request with a ticket; all others pass untouched."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from draftpick.engines.reporting.measurements import Measurements
from draftpick.engines.reporting.middleware import ReportedRequests
from draftpick.engines.reporting.report import OutcomeReport
from draftpick.engines.reporting.reporter import Reporter
from draftpick.engines.reporting.ticket import HEADER, Ticket

SECRET, ROUTER = "a secret of some length", "http://router"
LEASE = "0123456789abcdef" * 2
TICKET = Ticket(LEASE, ROUTER).to_header(SECRET)


class Kept(Reporter):
    """Keeps reports where the real one sends them."""

    def __init__(self) -> None:
        super().__init__(SECRET)
        self.reports: list[tuple[str, OutcomeReport]] = []

    def put(self, router: str, complete: Callable[[], OutcomeReport]) -> None:
        self.reports.append((router, complete()))


def answering(*bodies: bytes, status: int = 200, kind: str = "text/event-stream", ends: bool = True) -> ASGIApp:
    """An application that sends these bodies."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        headers = [(b"content-type", kind.encode()), (b"x-seen", dict(scope["headers"]).get(b"x-request-id", b""))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for number, body in enumerate(bodies, 1):
            await asyncio.sleep(0.001)
            await send({"type": "http.response.body", "body": body, "more_body": not ends or number < len(bodies)})

    return app


async def ask(
    app: ASGIApp, headers: dict[str, str], measured: Measurements | None = None
) -> tuple[list[Any], Kept, ReportedRequests]:
    """Send one request; returns what was sent in answer."""
    wrapped, sent = (
        ReportedRequests(app, Measurements() if measured is None else measured, reporter := Kept()),
        list[Any](),
    )

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}"}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    with contextlib.suppress(RuntimeError):
        await wrapped({"type": "http", "headers": raw}, receive, send)
    return sent, reporter, wrapped


async def reported(app: ASGIApp, measured: Measurements | None = None) -> OutcomeReport:
    _, reporter, _ = await ask(app, {HEADER: TICKET, "x-request-id": "of the client"}, measured)
    ((router, report),) = reporter.reports
    assert (router, report.lease) == (ROUTER, LEASE)
    return report


async def test_a_request_without_a_ticket_passes_untouched() -> None:
    sent, reporter, _ = await ask(answering(b"x"), {"x-request-id": "of the client"})
    assert (b"x-seen", b"of the client") in sent[0]["headers"]
    assert not reporter.reports


async def test_a_forged_ticket_is_counted_and_reports_nothing() -> None:
    forged = Ticket(LEASE, "http://elsewhere").to_header("another secret of length")
    sent, reporter, wrapped = await ask(answering(b"x"), {HEADER: forged})
    assert len(sent) == 2
    assert not reporter.reports
    assert wrapped.forged == 1


async def test_the_engine_measures_by_the_leases_id() -> None:
    measured = Measurements()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        id = dict(scope["headers"])[b"x-request-id"].decode()
        assert HEADER.encode() not in dict(scope["headers"])
        for tokens in (3, 4):  # two sequences of one request
            measured.note(f"chatcmpl-{id}", {"prompt_tokens": 5, "completion_tokens": tokens})
        measured.note(f"chatcmpl-{'f' * 32}", {"prompt_tokens": 1, "completion_tokens": 1})
        await answering(b"{}", kind="application/json")(scope, receive, send)

    report = await reported(app, measured)
    assert report.usage == {"prompt_tokens": 5, "completion_tokens": 7}
    assert report.metrics is None  # of two sequences
    assert (report.status, report.error, report.ttft_s) == (200, None, None)
    assert not len(measured)


async def test_the_times_of_a_stream_begin_with_its_content() -> None:
    report = await reported(answering(b": wait\n\n", b"data: {}\n\n", b"data: [DONE]\n\n"))
    assert report.ttft_s is not None
    assert report.e2e_s is not None
    assert 0.002 <= report.ttft_s < report.e2e_s


async def crashes(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("engine")


ERROR = b'data: {"error": {"message": "no", "code": 400}}\n\n'


@pytest.mark.parametrize(
    ("app", "status", "error"),
    [
        (answering(b"{}", status=422, kind="application/json"), 422, None),
        (answering(b"data: {}\n\n", ends=False), 200, "broken"),
        (answering(ERROR), 400, None),
        (answering(b"data: {}\n\n", ERROR), 400, "broken"),
        (answering(b"data: {}\n\n", b'data: {"error": 1}\n\n'), 500, "broken"),
        (crashes, 500, None),
    ],
)
async def test_how_an_answer_ends(app: ASGIApp, status: int, error: str | None) -> None:
    report = await reported(app)
    assert (report.status, report.error) == (status, error)


async def test_a_client_that_leaves_has_cancelled() -> None:
    reporter, left = Kept(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    messages = iter([{"type": "http.request"}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        return

    scope = {"type": "http", "headers": [(HEADER.encode(), TICKET.encode())]}
    await ReportedRequests(app, Measurements(), reporter)(scope, receive, send)
    assert left.is_set()
    ((_, report),) = reporter.reports
    assert (report.status, report.error) == (200, "cancelled")
