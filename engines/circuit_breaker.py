"""A circuit breaker per replica: repeated failures eject the replica for a while, then one request probes it."""

import time
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from draftpick.engines.config import Model

State = Literal["closed", "open", "half_open"]
_SHARE_WEIGHT = 0.05
_CLOSE_SHARE = 0.25
_NEGLIGIBLE_RATE = 1e-3


class BreakerConfig(Model):
    """Ejection and recovery of a replica."""

    consecutive_failures: int = Field(3, ge=1, description="consecutive failures that open a replica's breaker")
    failure_rate: float = Field(0.5, gt=0, le=1, description="recent failure rate that also opens it")
    base_ejection_s: float = Field(1.0, gt=0, description="first ejection time; doubles with each failed probe")
    max_ejection_s: float = Field(30.0, gt=0, description="longest ejection time")
    slow_start_s: float = Field(
        6.0, ge=0, description="slow start after recovery: one concurrent request, doubling every second, for this long"
    )
    outlier_factor: float = Field(
        4.0, gt=1, description="eject a replica whose time per token exceeds its siblings' median by this factor"
    )


class CircuitBreaker:
    """Health of one replica. `clock` is monotonic, in seconds.

    closed: requests pass. open: none pass. half_open: one probe passes, and its result decides. `clear`: it is closed
    and remembers no failure, so that only a failure changes it; requests need not ask it.
    """

    __slots__ = (
        "_clock",
        "_config",
        "_consecutive_failures",
        "_failure_rate",
        "_open_s",
        "_probing",
        "_recovered",
        "_until",
        "clear",
        "opened",
    )

    def __init__(self, config: BreakerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._consecutive_failures, self._failure_rate = 0, 0.0
        self._open_s = config.base_ejection_s
        self._until: float | None = None
        self._probing = False
        self._recovered: float | None = None
        self.clear = True
        self.opened = 0

    @property
    def state(self) -> State:
        if self._until is None:
            return "closed"
        return "half_open" if self._clock() >= self._until else "open"

    def admits(self, in_flight: int) -> bool:
        """Return True if one more request may pass while `in_flight` others run."""
        if self._until is not None:
            return not self._probing and self._clock() >= self._until
        if self._recovered is None:
            return True
        elapsed_s = self._clock() - self._recovered
        if elapsed_s >= self._config.slow_start_s:
            self._recovered = None
            return True
        return bool(in_flight < 2.0**elapsed_s)

    def begin(self) -> bool:
        """Record that a request starts; return True if it is the probe of a half-open breaker."""
        if self._until is None or self._probing:
            return False
        self._probing = True
        return True

    def end(self, *, ok: bool | None, probe: bool) -> None:
        """Record the end of a request: success, failure, or None if it says nothing about the engine."""
        if probe:
            self._probing = False
        if ok is None or (self._until is not None and not probe):
            return  # requests from before the breaker opened decide nothing
        self._failure_rate += _SHARE_WEIGHT * ((not ok) - self._failure_rate)
        self._consecutive_failures = 0 if ok else self._consecutive_failures + 1
        self.clear = ok and self._until is self._recovered is None and self._failure_rate < _NEGLIGIBLE_RATE
        if self.clear:
            self._failure_rate = 0.0
        if not ok and (
            probe
            or self._consecutive_failures >= self._config.consecutive_failures
            or self._failure_rate > self._config.failure_rate
        ):
            self.trip()
        elif ok and self._until is not None:
            self._close()

    def trip(self) -> None:
        """Open the breaker, for twice the previous time unless a request succeeded in between."""
        self._until = self._clock() + self._open_s
        self._open_s = min(2 * self._open_s, self._config.max_ejection_s)
        self._probing, self.clear = False, False
        self.opened += 1

    def half_open(self) -> None:
        """Let a probe pass now, if the breaker is open."""
        if self._until is not None:
            self._until = min(self._until, self._clock())

    def _close(self) -> None:
        self._until, self._recovered = None, self._clock()
        self._consecutive_failures, self._failure_rate = 0, min(self._failure_rate, _CLOSE_SHARE)
        self._open_s = self._config.base_ejection_s
