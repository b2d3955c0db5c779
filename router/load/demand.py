"""Which engines requests would go to if no engine had any load, and how many replicas of each that would take."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_MEMORY_S = 30.0


@dataclass(frozen=True, slots=True)
class Scalable:
    """An engine, as far as its number of replicas goes. `target`: requests in flight that one replica should have."""

    accelerators: int
    min_replicas: int
    max_replicas: int
    target: float


class Demand:
    """Counts the requests of each arm that would be there if every arm had replicas enough (`in_flight`).

    By Little's law: how often an arm is wished for, times how long it takes. Both are means of about half a minute.
    """

    def __init__(self, arms: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._at = clock, clock()
        self._preferred, self._routed = dict.fromkeys(arms, 0.0), dict.fromkeys(arms, 0.0)

    def observe(self, preferred: str, routed: str) -> None:
        """A request that `preferred` would have got without any load goes to `routed`."""
        self._fade()
        self._preferred[preferred] = self._preferred.get(preferred, 0.0) + 1.0
        self._routed[routed] = self._routed.get(routed, 0.0) + 1.0

    def in_flight(self, service_s: Mapping[str, float]) -> dict[str, float]:
        """Requests by arm, where one takes `service_s` there; an arm that served none takes what the slowest does."""
        self._fade()
        usual = max(service_s.values(), default=0.0)
        return {arm: n / _MEMORY_S * (service_s.get(arm) or usual) for arm, n in self._preferred.items()}

    def unmet(self) -> dict[str, float]:
        """By how much more often each arm would have been chosen without load: 0.3 is 30 % more often."""
        self._fade()
        return {arm: n / max(self._routed[arm], 1.0) - 1.0 for arm, n in self._preferred.items() if n >= 1.0}

    def _fade(self) -> None:
        now = self._clock()
        kept, self._at = math.exp((self._at - now) / _MEMORY_S), now
        for counts in (self._preferred, self._routed):
            for arm in counts:
                counts[arm] *= kept


def replicas(demand: Mapping[str, float], fleet: Mapping[str, Scalable], budget: int | None) -> dict[str, int]:
    """How many replicas of each arm of the fleet shall run for so many requests in flight, within the budget.

    Beyond its least number, a replica goes to the arm whose replicas would have most to do, as long as one fits.
    """
    wanted = {arm: math.ceil(demand.get(arm, 0.0) / one.target - 1e-9) for arm, one in fleet.items()}
    given = {arm: one.min_replicas for arm, one in fleet.items()}
    left = math.inf if budget is None else budget - sum(n * fleet[arm].accelerators for arm, n in given.items())
    while True:
        short = [
            arm
            for arm, one in fleet.items()
            if given[arm] < min(wanted[arm], one.max_replicas) and one.accelerators <= left
        ]
        if not short:
            return given
        most = max(short, key=lambda arm: demand[arm] / fleet[arm].target / max(given[arm], 1))
        given[most] += 1
        left -= fleet[most].accelerators
