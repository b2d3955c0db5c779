"""Sends reports of finished requests to the routers that decided for them, in small batches."""

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import orjson

from draftpick.engines.errors import EngineError
from draftpick.engines.http.client import EngineClient
from draftpick.engines.reporting.report import MAX_BATCH, PATH, OutcomeReport
from draftpick.engines.reporting.ticket import Ticket, read_secret

log = logging.getLogger("draftpick.engines")

_EVERY_S, _MAX_PAUSE_S = 0.1, 2.0
_MAX_QUEUED, _MAX_AGE_S = 4096, 20.0
_TIMEOUT_S = 5.0

_SETTLE_S = 0.05
"""What the engine itself measures may come this long after the answer's last byte."""
_MAX_ROUTERS = 64
_NOT_JSON = 400

Complete = Callable[[], OutcomeReport]
"""Makes a report, of what was measured until then."""


@dataclass(slots=True)
class _Waiting:
    since: float
    complete: Complete
    report: OutcomeReport | None = None

    def made(self) -> OutcomeReport:
        """The report, made once."""
        if self.report is None:
            self.report = self.complete()
        return self.report


class Reporter:
    """Queues of reports, one for each router that has any waiting.

    Bounded: `max_queued` reports in all, each for `max_age_s`. A batch that does not reach its router is sent again
    until then. Lost ones are counted in `lost`, by `draftpick.engines.reporting.report.LOST`, and each router is told.
    """

    def __init__(
        self,
        secret: str,
        every_s: float = _EVERY_S,
        max_queued: int = _MAX_QUEUED,
        max_age_s: float = _MAX_AGE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.secret, self.lost = secret, Counter[str]()
        self._every_s, self._max_queued, self._max_age_s, self._clock = every_s, max_queued, max_age_s, clock
        self._client = EngineClient(first_byte_timeout_s=_TIMEOUT_S, timeout_s=_TIMEOUT_S)
        self._queues: dict[str, deque[_Waiting]] = {}
        self._untold: dict[str, Counter[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Reporter | None":
        """The reporter of this process; None without a secret. Raises `ConfigError`."""
        secret = read_secret(environment)
        return None if secret is None else cls(secret)

    def ticket(self, header: str) -> Ticket | None:
        """The ticket in a request's header; None for a forged one."""
        return Ticket.from_header(header, self.secret)

    def put(self, router: str, complete: Complete) -> None:
        """Queue a report for a router; never waits."""
        if sum(map(len, self._queues.values())) >= self._max_queued:
            complete()
            self._lose(router, "full", 1)
            return
        queue = self._queues.get(router)
        if queue is None:
            queue = self._queues[router] = deque()
            task = asyncio.create_task(self._send_all(router, queue))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        queue.append(_Waiting(self._clock(), complete))

    async def close(self) -> None:
        """Stop; what still waits is lost."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()

    async def _send_all(self, router: str, queue: deque[_Waiting]) -> None:
        """Send what waits for one router, until nothing does."""
        pause_s = self._every_s
        try:
            while queue:
                await asyncio.sleep(pause_s)
                now = self._clock()
                self._lose(router, "old", len(_take_until(queue, now - self._max_age_s, len(queue))))
                if not (batch := _take_until(queue, now - _SETTLE_S, MAX_BATCH)):
                    continue
                status = await self._send(router, [one.made() for one in batch])
                if status is None or status >= 500:  # it may be back in time
                    queue.extendleft(reversed(batch))
                    pause_s = min(2 * pause_s, _MAX_PAUSE_S)
                    continue
                pause_s = self._every_s
                if status >= 400:
                    log.error("the router at %s refuses reports: %d", router, status)
                    self._lose(router, "refused", len(batch))
        finally:
            del self._queues[router]

    def _lose(self, router: str, reason: str, number: int) -> None:
        """Count lost reports; the router is told with its next batch."""
        if number:
            self.lost[reason] += number
            self._untold.setdefault(router, Counter())[reason] += number
            if len(self._untold) > _MAX_ROUTERS:
                del self._untold[next(iter(self._untold))]

    async def _send(self, router: str, reports: list[OutcomeReport]) -> int | None:
        """Send one batch; returns the status of the answer, None without any."""
        lost = self._untold.get(router, Counter())
        try:
            body = orjson.dumps({"outcomes": reports, "lost": dict(lost)}, option=orjson.OPT_SERIALIZE_NUMPY)
        except TypeError:  # the engine measured what is no JSON
            log.exception("reports of outcomes cannot be written")
            return _NOT_JSON
        self._untold.pop(router, None)
        headers = [("content-type", "application/json"), ("authorization", f"Bearer {self.secret}")]
        status: int | None = None
        with contextlib.suppress(EngineError):
            async with self._client.send(router + PATH, "POST", headers, body, stream=False) as answer:
                async for _ in answer.chunks:
                    pass
                status = answer.status
        if lost and status != 200:
            self._untold.setdefault(router, Counter()).update(lost)
        return status


def _take_until(queue: deque[_Waiting], time_s: float, most: int) -> list[_Waiting]:
    """Take the reports that wait since before this time, so many at most; each is complete then."""
    taken: list[_Waiting] = []
    while queue and len(taken) < most and queue[0].since <= time_s:
        taken.append(queue.popleft())
        taken[-1].made()
    return taken
