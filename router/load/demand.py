"""Demand by engine: the unloaded choices of requests, and the number of replicas that they need."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from draftpick.engines.arms import engine_of

_MEMORY_S = 30.0


@dataclass(frozen=True, slots=True)
class Scalable:
    """Scaling properties of an engine. `target`: target requests in flight per replica."""

    accelerators: int
    min_replicas: int
    max_replicas: int
    target: float


class Demand:
    """Estimates the requests in flight by engine if every engine had enough replicas (`in_flight`).

    By Little's law: rate of requests that prefer the engine, times their service time. Both are means of about half a
    minute. `decisions`: counted by the request path since the last reading, by the arm that a request prefers without
    load, and the one that it is routed to.
    """

    def __init__(self, arms: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._at = clock, clock()
        self.decisions: Counter[tuple[str, str]] = Counter()
        engines = [engine_of(arm) for arm in arms]
        self._preferred, self._routed = dict.fromkeys(engines, 0.0), dict.fromkeys(engines, 0.0)

    def in_flight(self, service_s: Mapping[str, float]) -> dict[str, float]:
        """Requests by engine with service times `service_s`; one without takes that of the slowest."""
        self._update()
        slowest_s = max(service_s.values(), default=0.0)
        return {engine: n / _MEMORY_S * (service_s.get(engine) or slowest_s) for engine, n in self._preferred.items()}

    def unmet(self) -> dict[str, float]:
        """Relative excess of unloaded choices over actual ones by engine: 0.3 is 30 % more."""
        self._update()
        return {one: n / max(self._routed[one], 1.0) - 1.0 for one, n in self._preferred.items() if n >= 1.0}

    def _update(self) -> None:
        """Let earlier decisions fade, and add the new ones as if spread evenly since the last reading."""
        now = self._clock()
        passed, self._at = (now - self._at) / _MEMORY_S, now
        kept, new = math.exp(-passed), -math.expm1(-passed) / passed if passed > 0 else 1.0
        for counts in (self._preferred, self._routed):
            for engine in counts:
                counts[engine] *= kept
        for arms, n in self.decisions.items():
            preferred, routed = map(engine_of, arms)
            # A policy may prefer an engine that the fleet does not have.
            self._preferred[preferred if preferred in self._preferred else routed] += new * n
            self._routed[routed] += new * n
        self.decisions.clear()


def replicas(demand: Mapping[str, float], fleet: Mapping[str, Scalable], budget: int | None) -> dict[str, int]:
    """Replicas of each arm for these requests in flight, within the budget.

    Beyond the minimum, each replica goes to the arm with the highest load per replica, while one fits.
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
