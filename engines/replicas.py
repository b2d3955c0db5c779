"""Replicas of each arm: addresses, requests in flight, and health."""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from draftpick.engines.arms import engine_of
from draftpick.engines.circuit_breaker import BreakerConfig, CircuitBreaker, State
from draftpick.engines.errors import EngineUnavailable
from draftpick.engines.load_report import LoadReport
from draftpick.engines.profile.profile import GREEDY, MODES

_MIN_TIMES, _MIN_SIBLINGS, _TIME_WEIGHT = 20, 2, 0.1
_NEAR = 2
"""Maximum excess over the least loaded replica at which a cached prefix still decides."""
_NOTHING: Mapping[str, int] = {}
PlacementCost = Callable[[str, "Replica", int, int], float]
"""What one more request costs all requests at a replica: by its arm, the replica, the request's sampling mode, and how
many bytes of its prefix the replica has cached."""
UNAVAILABLE_REASONS = {
    "no_replica": "has no replica",
    "gone": "is unreachable",
    "breaker_open": "is ejected after repeated failures",
    "full": "is full",
}
"""Why no replica of an arm may take a request."""


class Replica:
    """One address of an arm. `in_flight` counts this router's own requests; `tpot_s` is a moving mean.

    `foreign_in_flight`: other clients' requests at its last report; `report`: the last one, received at `reported_at`.
    `by_mode`, `by_arm`: this router's own requests by sampling mode, and by arm. `composition`: what a cost of
    placement depends on besides their number, kept by whoever computes it until a request comes or goes.
    `answered_at`: when a request was last answered, by the table's `clock`.
    """

    __slots__ = (
        "answered_at",
        "breaker",
        "by_arm",
        "by_mode",
        "clock",
        "composition",
        "foreign_in_flight",
        "in_flight",
        "num_times",
        "report",
        "reported_at",
        "tpot_s",
        "unreachable",
        "url",
    )

    def __init__(self, url: str, breaker: CircuitBreaker, clock: Callable[[], float] = time.monotonic) -> None:
        self.url, self.breaker, self.clock = url, breaker, clock
        self.answered_at = -math.inf
        self.in_flight, self.num_times, self.tpot_s = 0, 0, 0.0
        self.unreachable = False
        self.foreign_in_flight, self.reported_at = 0, 0.0
        self.report: LoadReport | None = None
        self.by_mode, self.by_arm = [0] * len(MODES), dict[str, int]()
        self.composition: object = None

    @property
    def total_in_flight(self) -> int:
        """Requests of all clients."""
        return self.in_flight + self.foreign_in_flight

    @property
    def usable(self) -> bool:
        """True if it is reachable and not ejected."""
        return not self.unreachable and (self.breaker.clear or self.breaker.admits(self.in_flight))

    def answered_within(self, seconds: float) -> bool:
        """True if it has answered a request, or reported that it makes tokens, in the last so many seconds."""
        began = self.clock() - seconds
        busy = self.report is not None and self.report.tokens_per_s > 0 and self.reported_at > began
        return self.answered_at > began or busy

    def count(self, arm: str, mode: int, change: int) -> None:
        """Add a request of this router, or (`change` is -1) remove it."""
        self.in_flight += change
        self.by_mode[mode] += change
        self.by_arm[arm] = self.by_arm.get(arm, 0) + change
        self.composition = None

    def mark_reachable(self) -> None:
        """Record that it answers again: the next request may probe it."""
        self.unreachable = False
        self.breaker.half_open()

    def record_report(self, report: LoadReport, at: float) -> None:
        """Record an engine's load report. `at`: time of the table's clock."""
        self.report, self.reported_at, self.composition = report, at, None
        self.foreign_in_flight = max(report.running + report.waiting - self.in_flight, 0)

    def record_tpot(self, tpot_s: float) -> None:
        """Update the moving mean of the time per output token."""
        self.num_times += 1
        self.tpot_s += max(_TIME_WEIGHT, 1 / self.num_times) * (tpot_s - self.tpot_s)


@dataclass(slots=True)
class Lease:
    """A slot on a replica. The holder sets the result `ok`; None says nothing about the replica.

    `in_flight`: requests on the replica when it was taken, including this one.
    """

    replica: Replica
    probe: bool
    in_flight: int = 1
    ok: bool | None = None
    unreachable: bool = False
    tpot_s: float | None = None


class ReplicaTable:
    """Replicas by arm. Read on every request, updated when the fleet changes; one event loop, so no lock."""

    def __init__(
        self,
        arms: Iterable[str],
        breaker: BreakerConfig | None = None,
        max_in_flight: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_in_flight`: maximum per replica. `busy`: requests on all replicas; `by_arm`: replicas by arm; those of a
        pool share them."""
        self._replicas: dict[str, list[Replica]] = {arm: [] for arm in arms}
        self._engine_arms: dict[str, list[str]] = {}
        for arm in self._replicas:
            self._engine_arms.setdefault(engine_of(arm), []).append(arm)
        self.by_arm: Mapping[str, Sequence[Replica]] = self._replicas
        self._in_flight = dict.fromkeys(self._replicas, 0)
        self._breaker, self._clock = breaker or BreakerConfig(), clock
        self.max_in_flight, self.busy = max_in_flight, 0
        self.arms = tuple(self._replicas)
        self.placement_cost: PlacementCost | None = None

    @property
    def by_engine(self) -> dict[str, Sequence[Replica]]:
        """Replicas by engine."""
        return {engine: self._replicas[arms[0]] for engine, arms in self._engine_arms.items()}

    def arms_of(self, engine: str) -> Sequence[str]:
        """Return the arms of an engine, which share its replicas; none if there is no such engine."""
        return self._engine_arms.get(engine, ())

    def update(self, engine: str, urls: Iterable[str]) -> None:
        """Set the replicas of an engine to `urls`; existing ones keep their counts and health."""
        arms = self._engine_arms[engine]
        known = {replica.url: replica for replica in self._replicas[arms[0]]}
        replicas = [known.get(url) or self._new(url) for url in dict.fromkeys(urls)]
        self._replicas.update(dict.fromkeys(arms, replicas))

    def _new(self, url: str) -> Replica:
        return Replica(url, CircuitBreaker(self._breaker, self._clock), self._clock)

    def eligible(self, tried: Collection[Replica] = ()) -> list[str]:
        """Return the arms with an admitting replica that is not in `tried`, in configuration order.

        Panic mode: if the breakers admit none, every reachable replica with a free slot counts, since an attempt costs
        less than a rejection.
        """
        arms = [arm for arm, replicas in self._replicas.items() if self._any_admits(replicas, tried)]
        return arms or [
            arm
            for arm, replicas in self._replicas.items()
            if any(replica not in tried and self._admits_in_panic(replica) for replica in replicas)
        ]

    def unavailable_reason(self, arm: str) -> str | None:
        """A key of `UNAVAILABLE_REASONS` for an arm that is not eligible, else None."""
        replicas = self._replicas[arm]
        if not replicas:
            return "no_replica"
        if arm in self.eligible():
            return None
        if all(replica.in_flight >= self.max_in_flight for replica in replicas):
            return "full"
        return "gone" if all(replica.unreachable for replica in replicas) else "breaker_open"

    def reachable(self) -> bool:
        """True if any replica accepted a connection at the last attempt, whatever its state."""
        return any(not replica.unreachable for replicas in self._replicas.values() for replica in replicas)

    def _any_admits(self, replicas: list[Replica], tried: Collection[Replica]) -> bool:
        for replica in replicas:  # a plain loop: every request evaluates this for every arm
            breaker, in_flight = replica.breaker, replica.in_flight
            if in_flight < self.max_in_flight and replica not in tried and (breaker.clear or breaker.admits(in_flight)):
                return True
        return False

    def _admits_in_panic(self, replica: Replica) -> bool:
        return replica.in_flight < self.max_in_flight and not replica.unreachable

    def in_flight(self) -> dict[str, int]:
        """This router's requests in flight by arm, including those on removed replicas."""
        return self._in_flight.copy()

    def urls(self) -> dict[str, list[str]]:
        """Addresses by engine."""
        return {engine: [r.url for r in replicas] for engine, replicas in self.by_engine.items()}

    def health(self) -> dict[str, dict[str, State]]:
        """Breaker state of each replica, by engine and address."""
        return {engine: {r.url: r.breaker.state for r in replicas} for engine, replicas in self.by_engine.items()}

    def pick(
        self, arm: str, tried: Collection[Replica] = (), cached_prefix: Mapping[str, int] = _NOTHING, mode: int = GREEDY
    ) -> Replica | None:
        """Return the admitting replica of an arm where a request costs least, or None.

        That is by `placement_cost`, if set; else the least loaded one, or among those with nearly the lowest load the
        one with the longest cached prefix. `cached_prefix`: cached prefix of the request in bytes, by replica address.
        `mode`: of the request, one of `MODES`.
        """
        replicas = self._replicas[arm]
        if tried:
            replicas = [replica for replica in replicas if replica not in tried]
        most = self.max_in_flight
        candidates = [r for r in replicas if r.in_flight < most and (r.breaker.clear or r.breaker.admits(r.in_flight))]
        candidates = candidates or [r for r in replicas if self._admits_in_panic(r)]
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        if (cost := self.placement_cost) is not None:
            cached = cached_prefix.get
            return min(candidates, key=lambda r: (cost(arm, r, mode, known := cached(r.url, 0)), -known, r.in_flight))
        if cached_prefix:
            least = min(r.in_flight + r.foreign_in_flight for r in candidates)
            limit = least + max(_NEAR, least // 4)
            near = [r for r in candidates if r.in_flight + r.foreign_in_flight <= limit]
            longest = max(cached_prefix.get(r.url, 0) for r in near)
            candidates = [r for r in near if cached_prefix.get(r.url, 0) == longest]
        return min(candidates, key=lambda r: r.in_flight + r.foreign_in_flight)

    @contextmanager
    def lease(
        self, arm: str, tried: Collection[Replica] = (), cached_prefix: Mapping[str, int] = _NOTHING, mode: int = GREEDY
    ) -> Iterator[Lease]:
        """Lease the replica chosen by `pick` for the duration of the block. Raises `EngineUnavailable`."""
        replica = self.pick(arm, tried, cached_prefix, mode)
        if replica is None:
            raise EngineUnavailable(f"engine {arm!r} has no replica")
        replica.count(arm, mode, 1)
        self._in_flight[arm] += 1
        self.busy += 1
        probe = not replica.breaker.clear and replica.breaker.begin()
        lease = Lease(replica, probe, replica.in_flight + replica.foreign_in_flight)
        try:
            yield lease
        finally:
            replica.count(arm, mode, -1)
            self._in_flight[arm] -= 1
            self.busy -= 1
            self._end(arm, lease)

    def _end(self, arm: str, lease: Lease) -> None:
        replica = lease.replica
        replica.unreachable = lease.unreachable
        if lease.unreachable:
            replica.breaker.trip()
            return
        if lease.ok:
            replica.answered_at = self._clock()
        if not (lease.ok and replica.breaker.clear):
            replica.breaker.end(ok=lease.ok, probe=lease.probe)
        if lease.tpot_s is not None:
            replica.record_tpot(lease.tpot_s)
            if len(self._replicas[arm]) > _MIN_SIBLINGS:
                self._eject_outlier(replica, self._replicas[arm])

    def _eject_outlier(self, replica: Replica, arm: list[Replica]) -> None:
        """Eject a replica far slower than its siblings, unless half of them are ejected already."""
        siblings = [r.tpot_s for r in arm if r is not replica and r.num_times >= _MIN_TIMES]
        if replica.num_times < _MIN_TIMES or len(siblings) < _MIN_SIBLINGS:
            return
        well = sum(r.breaker.state == "closed" for r in arm)
        if replica.tpot_s > self._breaker.outlier_factor * median(siblings) and 2 * (well - 1) >= len(arm):
            replica.breaker.trip()
            replica.num_times = 0
