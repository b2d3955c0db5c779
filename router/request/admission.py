"""Admission control: limits of concurrent and queued requests, queue order, and load shedding."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

from draftpick.router.config.sections import AdmissionConfig
from draftpick.router.errors import Overloaded, TimedOut

PRIORITIES = {"low": -1, "normal": 0, "high": 1}


@dataclass(slots=True, eq=False)
class QueuedRequest:
    key: str
    priority: int
    sequence: int
    admitted: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Admission:
    """A bounded number of slots and a bounded queue: by priority, and fair between keys of equal priority.

    A free slot goes to the highest priority, within it to the key with the fewest slots. If the queue is full, the
    newest request of the lowest priority is shed, within it of the key with the most queued requests.
    """

    def __init__(self, limits: AdmissionConfig | None = None) -> None:
        self.limits = limits or AdmissionConfig()
        self.slots_by_key: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.in_flight, self._queued = 0, 0
        self._numbers = count()
        self._queue: dict[int, dict[str, deque[QueuedRequest]]] = {}

    @property
    def queued(self) -> int:
        """Number of queued requests."""
        return self._queued

    def state(self) -> dict[str, object]:
        """Numbers of requests in flight, queued, and rejected or shed so far."""
        return {"in_flight": self.in_flight, "queued": self._queued, **self.counts}

    @asynccontextmanager
    async def slot(self, key: str = "", priority: int = 0, deadline: float | None = None) -> AsyncIterator[None]:
        """Hold a slot during the block. Raises `Overloaded`, or `TimedOut` at `deadline` (perf_counter)."""
        if self.in_flight < self.limits.max_in_flight and not self._queued:
            self.in_flight += 1
        else:
            await self._wait(key, priority, deadline)
        self.slots_by_key[key] += 1
        try:
            yield
        finally:
            self.slots_by_key[key] -= 1
            if not self.slots_by_key[key]:
                del self.slots_by_key[key]
            self._admit_next()

    def configure(self, limits: AdmissionConfig) -> None:
        """Apply new limits; queued requests get the slots that this frees."""
        self.limits = limits
        while self._queued and self.in_flight < limits.max_in_flight:
            self.in_flight += 1
            self._admit_next()

    async def _wait(self, key: str, priority: int, deadline: float | None) -> None:
        queued = QueuedRequest(key, priority, next(self._numbers))
        if self._queued >= self.limits.max_queued:
            self._shed(queued)
        self._queue.setdefault(priority, {}).setdefault(key, deque()).append(queued)
        self._queued += 1
        left_s = float("inf") if deadline is None else deadline - time.perf_counter()
        try:
            async with asyncio.timeout(min(self.limits.queue_timeout_s, left_s)):
                await queued.admitted
        except BaseException as error:  # however the wait ends, the request leaves the queue
            if queued.admitted.done() and not queued.admitted.cancelled() and queued.admitted.exception() is None:
                self._admit_next()  # it got a slot while leaving: pass it on
            else:
                self._remove(queued)
            if not isinstance(error, TimeoutError):
                raise
            self.counts["waited_too_long"] += 1
            if left_s < self.limits.queue_timeout_s:
                raise TimedOut("the deadline passed while the request was queued") from error
            raise self._overloaded() from error

    def _overloaded(self) -> Overloaded:
        return Overloaded("too many requests", retry_after_s=self.limits.retry_after_s)

    def _shed(self, arriving: QueuedRequest) -> None:
        """Make room in a full queue. Raises `Overloaded` if the arriving request is the one to shed."""
        self.counts["refused"] += 1
        lowest = min(self._queue, default=arriving.priority)
        keys = self._queue.get(lowest, {})
        loser = max(keys, key=lambda k: len(keys[k]), default=None)
        own = len(keys.get(arriving.key, ())) + 1
        if loser is None or lowest > arriving.priority or (lowest == arriving.priority and len(keys[loser]) <= own):
            raise self._overloaded()
        victim = keys[loser][-1]
        self._remove(victim)
        if not victim.admitted.done():
            victim.admitted.set_exception(self._overloaded())

    def _remove(self, queued: QueuedRequest) -> None:
        """Remove a request from the queue, if it is still queued."""
        keys = self._queue.get(queued.priority, {})
        line = keys.get(queued.key)
        if line is None or queued not in line:
            return
        line.remove(queued)
        self._queued -= 1
        if not line:
            del keys[queued.key]
        if not keys:
            del self._queue[queued.priority]

    def _admit_next(self) -> None:
        """Give a free slot to the next request."""
        while self._queued and self.in_flight <= self.limits.max_in_flight:
            keys = self._queue[max(self._queue)]
            next_key = min(keys, key=lambda k: (self.slots_by_key[k], keys[k][0].sequence))
            waiting = keys[next_key][0]
            self._remove(waiting)
            if not waiting.admitted.done():  # done if its client has just disconnected
                waiting.admitted.set_result(None)
                return
        self.in_flight -= 1
