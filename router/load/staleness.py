"""Detects engines with outdated load reports."""

import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from draftpick.engines.replicas import Replica, ReplicaTable


class StaleReports:
    """A `draftpick.router.load.health_signal.HealthSignal`: arms with earlier load reports, but no recent one from any
    replica."""

    reason: ClassVar[str] = "stale"
    text: ClassVar[str] = "has outdated load reports"
    fallback: ClassVar[str | None] = "stale_load"

    def __init__(self, replicas: ReplicaTable, stale_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._replicas, self._stale_s, self._clock = replicas, stale_s, clock
        self.suspects: frozenset[str] = frozenset()

    def refresh(self) -> None:
        """Update the suspects."""
        oldest = self._clock() - self._stale_s
        self.suspects = frozenset(arm for arm, there in self._replicas.by_arm.items() if _all_stale(there, oldest))

    def admits(self, arm: str, in_flight: int) -> bool:
        return arm not in self.suspects


def _all_stale(replicas: Sequence[Replica], oldest: float) -> bool:
    """True if all of an arm's replicas have reported before, and none recently."""
    return bool(replicas) and all(r.report is not None and r.reported_at < oldest for r in replicas)
