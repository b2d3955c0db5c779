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
    """A bounded number of slots and a bounded queue: by priority, and fair between keys.

    A free slot goes to the highest priority, within it to the key with the fewest slots. No key takes all: its slots
    are at most a multiple of the free ones, so that it alone would get `max_key_share` of all (dynamic thresholds;
    Choudhury, Hahne 1998). If the queue is full, the newest request of the lowest priority is shed, within it of the
    key with the most queued requests.
    """

    def __init__(self, limits: AdmissionConfig | None = None) -> None:
        self.slots_by_key: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.in_flight, self._queued = 0, 0
        self._numbers = count()
        self._queue: dict[int, dict[str, deque[QueuedRequest]]] = {}
        self.configure(limits or AdmissionConfig())

    @property
    def queued(self) -> int:
        """Number of queued requests."""
        return self._queued

    def state(self) -> dict[str, object]:
        """Numbers of requests in flight, queued, and rejected or shed so far."""
        return {"in_flight": self.in_flight, "queued": self._queued, **self.counts}

    @asynccontextmanager
    async def slot(self, key: str = "", priority: int = 0, deadline: float | None = None) -> AsyncIterator[None]:
        """Hold a slot during the block. Raises `Overloaded`, or `TimedOut` at `deadline` (perf_counter).

        `key`: name of the API key; empty if all requests have the same one, which may then take all slots.
        """
        if not self._queued and self._may_take(key):
            self.in_flight += 1
            self.slots_by_key[key] += 1
        else:
            await self._wait(key, priority, deadline)
        try:
            yield
        finally:
            self._release(key)

    def configure(self, limits: AdmissionConfig) -> None:
        """Apply new limits; queued requests get the slots that this frees."""
        self.limits = limits
        share = limits.max_key_share
        self._per_free_slot = share / (1.0 - share) if share < 1.0 else None
        self._admit_waiting()

    def _may_take(self, key: str) -> bool:
        """True if a slot is free, and the key leaves enough of them to others."""
        free, own = self.limits.max_in_flight - self.in_flight, self.slots_by_key[key] if key else 0
        if free <= 0 or not own:  # a key's first slot leaves enough
            return free > 0
        return self._per_free_slot is None or own + 1 <= self._per_free_slot * (free - 1)

    def _release(self, key: str) -> None:
        self.in_flight -= 1
        self.slots_by_key[key] -= 1
        if not self.slots_by_key[key]:
            del self.slots_by_key[key]
        if self._queued:
            self._admit_waiting()

    async def _wait(self, key: str, priority: int, deadline: float | None) -> None:
        queued = QueuedRequest(key, priority, next(self._numbers))
        if self._queued >= self.limits.max_queued:
            self._shed(queued)
        self._queue.setdefault(priority, {}).setdefault(key, deque()).append(queued)
        self._queued += 1
        self._admit_waiting()
        left_s = float("inf") if deadline is None else deadline - time.perf_counter()
        try:
            async with asyncio.timeout(min(self.limits.queue_timeout_s, left_s)):
                await queued.admitted
        except BaseException as error:  # however the wait ends, the request leaves the queue
            if queued.admitted.done() and not queued.admitted.cancelled() and queued.admitted.exception() is None:
                self._release(key)  # it got a slot while leaving: pass it on
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

    def _admit_waiting(self) -> None:
        """Give the free slots to queued requests."""
        while self._queued and self.in_flight < self.limits.max_in_flight and (waiting := self._next()) is not None:
            self._remove(waiting)
            if not waiting.admitted.done():  # done if its client has just disconnected
                self.in_flight += 1
                self.slots_by_key[waiting.key] += 1
                waiting.admitted.set_result(None)

    def _next(self) -> QueuedRequest | None:
        """The next request to admit; None if the keys of all that wait leave the free slots to others."""
        for priority in sorted(self._queue, reverse=True):
            keys = self._queue[priority]
            if may := [key for key in keys if self._may_take(key)]:
                return keys[min(may, key=lambda k: (self.slots_by_key[k], keys[k][0].sequence))][0]
        return None
