"""Leases: decisions for requests that somebody else sends, and whose outcomes are told, not measured here.

A lease takes the place of its request, in the limits of the router and at a replica, until an `OutcomeReport` tells how
it ended, or `lease_s` have passed. Its path is that of every request (`Dispatcher.run_leased`): admission, decision,
attempt, verdict, observers.
"""

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from draftpick.engines.arms import engine_of
from draftpick.engines.http.client import Headers, redact_userinfo
from draftpick.engines.replicas import Lease, Replica
from draftpick.engines.reporting.report import LOST, OutcomeReport
from draftpick.engines.reporting.ticket import HEADER, Ticket
from draftpick.router.config.sections import LeasesConfig
from draftpick.router.errors import Overloaded
from draftpick.router.headers import CLIENT_REQUEST_ID
from draftpick.router.openai_request import ENGINE_ARGS, with_engine_args
from draftpick.router.request.dispatcher import Dispatcher
from draftpick.router.request.meter import Meter
from draftpick.router.request.state import ClientRequest, RequestState, ResponseSink
from draftpick.router.request.verdict import CANCELLED, Verdict, judge_report

log = logging.getLogger("draftpick.router")

ENDS = ("told", "expired", "elsewhere", "cancelled")
"""How leases end: an outcome was told; none was in time; a fallback answered, of which nothing is learned; the router
stopped, or the caller left before it got the lease."""
REJECTED = ("unknown", "doubled", "late", "forged", "invalid")
"""Why a report changes nothing: no such lease; its lease had a report; its lease had expired; it came without the
secret; it was none."""
PICKS = ("picked", "refused", "gave_up", "left")
"""How the endpoint picker answered its gateway: with endpoints; with an error for the client; with none, since the
decision took too long; or not, since the gateway or its client left before."""
Told = Literal["told", "unknown", "doubled", "late"]
_MAX_FALLBACKS = 2
_MAX_REMEMBERED = 16_384


@dataclass(frozen=True, slots=True)
class Address:
    """Where a request may be sent: the engine's base URL, and the headers that go with it."""

    engine: str
    url: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Grant:
    """What the caller of `POST /v1/route` gets. `fields`: to be set in the request's body; a pool's forecast."""

    lease: str
    expires_in_s: float
    arm: str
    policy: str
    reason: str
    propensity: float
    address: Address
    fallbacks: tuple[Address, ...]
    fields: Mapping[str, Any]

    def as_json(self) -> dict[str, object]:
        """All fields."""
        return {"object": "lease", **asdict(self)}


class OpenLease:
    """One lease: the place of `Dispatcher._send`, whose attempt ends when an outcome is told."""

    def __init__(self, leases: "Leases") -> None:
        loop = asyncio.get_running_loop()
        self._leases = leases
        self.granted: asyncio.Future[Grant] = loop.create_future()
        self.report: asyncio.Future[OutcomeReport] = loop.create_future()
        self.end = "cancelled"

    async def __call__(
        self, state: RequestState, lease: Lease, sink: ResponseSink, meter: Meter, within_s: float | None
    ) -> Verdict:
        """Grant the lease, and wait for what is told of it."""
        state.started = True
        meter.sent = time.perf_counter()
        self.granted.set_result(self._leases.grant(state, lease.replica))
        try:
            async with asyncio.timeout(self._leases.config.lease_s):
                report = await self.report
        except TimeoutError:
            self.end = "expired"
            return CANCELLED
        if "." in report.lease:
            self.end = "elsewhere"
            return CANCELLED
        self.end = "told"
        circumstances = self._leases.circumstances(state, lease, meter, meter.elapsed_s())
        meter.observe_report(report)
        stream = state.client_request.request.stream
        return judge_report(report.status, report.error, stream=stream, **circumstances)


class Leases:
    """The open leases of one router; counts of their ends, of rejected reports, and of those that engines lost; and of
    the answers of the endpoint picker.

    `inbox`: where engines report, and with which secret; None if they do not.
    """

    def __init__(self, config: LeasesConfig, dispatcher: Dispatcher) -> None:
        self.config, self._dispatcher = config, dispatcher
        self.circumstances = dispatcher.timeouts.circumstances
        self.inbox: tuple[str, str] | None = None
        self._open: dict[str, OpenLease] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ended: OrderedDict[str, Told] = OrderedDict()
        self.ends = Counter(dict.fromkeys(ENDS, 0))
        self.rejected = Counter(dict.fromkeys(REJECTED, 0))
        self.lost = Counter(dict.fromkeys(LOST, 0))
        self.picks = Counter(dict.fromkeys(PICKS, 0))

    def __len__(self) -> int:
        return len(self._open)

    async def open(self, client_request: ClientRequest, among: Collection[str] | None = None) -> Grant:
        """Decide for a request, and hold its place. Raises `RequestError`.

        `among`: the endpoints (`host:port`) from which to choose; absent: all.
        """
        id, lease = client_request.id, OpenLease(self)
        task = self._tasks[id] = asyncio.create_task(self._dispatcher.run_leased(client_request, lease, among))
        task.add_done_callback(partial(self._close, id, lease))
        self._open[id] = lease
        try:
            await asyncio.wait((task, lease.granted), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # the caller is gone
            task.cancel()
            raise
        if not lease.granted.done():
            if task.cancelled():
                raise Overloaded("the router stops", retry_after_s=1.0)
            task.result()  # raises what ended it
        return lease.granted.result()

    def _close(self, id: str, lease: OpenLease, task: asyncio.Task[None]) -> None:
        """Count the end of a lease, and remember it."""
        del self._open[id], self._tasks[id]
        if not lease.granted.done():
            return
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a lease failed", exc_info=error, extra={"draftpick_request_id": id})
        self.ends[lease.end] += 1
        self._ended[id] = "doubled" if lease.end in ("told", "elsewhere") else "late"
        if len(self._ended) > _MAX_REMEMBERED:
            self._ended.popitem(last=False)

    def tell(self, report: OutcomeReport) -> Told:
        """Take the outcome of a lease. Any but the first for a lease changes nothing, and is counted."""
        id = report.lease.partition(".")[0]
        lease = self._open.get(id)
        if lease is not None and lease.granted.done() and not lease.report.done():
            lease.report.set_result(report)
            return "told"
        told = self._ended.get(id, "unknown") if lease is None else "late" if lease.report.cancelled() else "doubled"
        self.rejected[told] += 1
        return told

    def cancel(self, id: str) -> None:
        """End a lease of which nothing more will be told, if it is open: its client has gone."""
        if (task := self._tasks.get(id)) is not None:
            task.cancel()

    def tell_all(self, reports: Iterable[OutcomeReport], lost: Mapping[str, int]) -> dict[str, int]:
        """Take the outcomes of a batch; returns their number by what became of them."""
        self.lost.update({reason: number for reason, number in lost.items() if reason in LOST})
        return dict(Counter(map(self.tell, reports)))

    async def close(self) -> None:
        """End all leases."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def grant(self, state: RequestState, replica: Replica) -> Grant:
        """Describe the lease of a decision, at this replica."""
        client_request, decision = state.client_request, state.decision
        headers = client_request.headers
        if state.trace is not None:
            headers = state.trace.attempt_started(decision, state.number, headers, redact_userinfo(replica.url))
        others = self._dispatcher.decide.fallbacks(decision, state.tried, state.unable, state.adapter, _MAX_FALLBACKS)
        places = [(engine_of(decision.arm), replica), *others]
        addresses = [
            Address(engine, redact_userinfo(one.url), self._headers(client_request, headers, number))
            for number, (engine, one) in enumerate(places)
        ]
        args = with_engine_args(client_request.request, self._dispatcher.engine_args(state))
        return Grant(
            client_request.id,
            self.config.lease_s,
            decision.arm,
            decision.policy,
            decision.reason,
            decision.propensity,
            addresses[0],
            tuple(addresses[1:]),
            {} if args is None else {ENGINE_ARGS: args},
        )

    def _headers(self, client_request: ClientRequest, headers: Headers, number: int) -> dict[str, str]:
        """The headers for one address: of the trace, the request's id, and the ticket by which its engine reports."""
        found = {name: value for name, value in headers if name in _TRACE or name == CLIENT_REQUEST_ID}
        if self.inbox is not None:
            router, secret = self.inbox
            lease = f"{client_request.id}.{number}" if number else client_request.id
            found[HEADER] = Ticket(lease, router).to_header(secret)
        return found


_TRACE = ("traceparent", "tracestate")
