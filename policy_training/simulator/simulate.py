"""The simulation loop: requests arrive, a strategy chooses an arm, and its least loaded replica serves them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.simulator.fleet import Fleet, Pools
from draftpick.policy_training.simulator.replica import Replica, RequestLog
from draftpick.policy_training.simulator.requests import Requests
from draftpick.policy_training.simulator.routing import Strategy

Floats = npt.NDArray[np.float64]
_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Run:
    """Results by request: its arm, and the times of its first and last token, in seconds.

    `busy_s` and `request_s` [arms]: seconds with a busy replica, and seconds times running requests.
    """

    fleet: Fleet
    requests: Requests
    arm: npt.NDArray[np.intp]
    first_s: Floats
    finish_s: Floats
    busy_s: Floats
    request_s: Floats

    @property
    def latency_s(self) -> Floats:
        """Seconds from arrival to the last token [n]."""
        return self.finish_s - self.requests.arrival_s

    @property
    def ttft_s(self) -> Floats:
        """Seconds from arrival to the first token [n]."""
        return self.first_s - self.requests.arrival_s

    @property
    def tpot_s(self) -> Floats:
        """Seconds per token after the first [n]; NaN for answers of one token."""
        more = np.where(self.requests.output_tokens > 1, self.requests.output_tokens - 1, np.nan)
        return np.asarray((self.finish_s - self.first_s) / more)

    def figures(self, warm_up: float = 0.0) -> dict[str, float]:
        """Seconds, tokens per second, utilisation and shares; without a `warm_up` share of the first requests."""
        kept = slice(round(warm_up * len(self.arm)), None)
        found = {}
        for name in ("latency_s", "ttft_s", "tpot_s"):
            values = getattr(self, name)[kept]
            values = values[np.isfinite(values)]
            if len(values):
                found[f"{name}/mean"] = float(values.mean())
                found |= {f"{name}/{q}": float(np.quantile(values, at)) for q, at in _QUANTILES.items()}
        lasted = float(self.finish_s.max() - self.requests.arrival_s[0])
        found["requests_per_s"] = len(self.arm) / lasted
        found["tokens_per_s"] = float(self.requests.output_tokens.sum()) / lasted
        shares = np.bincount(self.arm[kept], minlength=len(self.fleet.arms)) / len(self.arm[kept])
        for at, (arm, count) in enumerate(zip(self.fleet.arms, self.fleet.replicas, strict=True)):
            found[f"share/{arm.name}"] = float(shares[at])
            found[f"utilisation/{arm.name}"] = float(self.busy_s[at]) / (count * lasted)
            found[f"running/{arm.name}"] = float(self.request_s[at]) / max(float(self.busy_s[at]), 1e-12)
        return found


def simulate(fleet: Fleet, requests: Requests, strategy: Strategy) -> Run:
    """Run all requests through a fleet. Raises `DatasetError` if an engine's acceptance lengths are unknown."""
    book = RequestLog(requests)
    pools = Pools(fleet, requests, book)
    events: list[tuple[float, int, Replica]] = []
    chosen: list[int] = []
    least, choose, ticket = pools.least_loaded, strategy.choose, 0
    for i, now in enumerate(requests.arrival_s.tolist()):
        while events and events[0][0] <= now:
            ticket = _next(events, pools, ticket)
        arm = choose(i, least)
        chosen.append(arm)
        replica = pools.lease(arm, strategy.place(i, pools.all[arm]))
        before = replica.next_s
        replica.arrive(now, i)
        if replica.next_s != before:
            ticket += 1
            heappush(events, (replica.next_s, ticket, replica))
    while events:
        ticket = _next(events, pools, ticket)
    return Run(
        fleet=fleet,
        requests=requests,
        arm=np.asarray(chosen, np.intp),
        first_s=np.asarray(book.first_s),
        finish_s=np.asarray(book.finish_s),
        busy_s=np.asarray([sum(one.busy_s for one in replicas) for replicas in pools.all]),
        request_s=np.asarray([sum(one.request_s for one in replicas) for replicas in pools.all]),
    )


def _next(events: list[tuple[float, int, Replica]], pools: Pools, ticket: int) -> int:
    """Process the next event, unless a later event of its replica has superseded it."""
    at, _, replica = heappop(events)
    if replica.next_s != at:
        return ticket
    before = replica.in_flight
    replica.run(at)
    if replica.in_flight != before:
        pools.release(replica, before)
    if replica.next_s < math.inf:
        ticket += 1
        heappush(events, (replica.next_s, ticket, replica))
    return ticket


def interval(values: Sequence[float]) -> Interval:
    """Mean of a figure over seeds, with its 95 % interval by Student's t; without an interval for a single seed."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, mean, mean)
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def intervals(runs: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    """Intervals of the figures common to all runs."""
    names = [name for name in runs[0] if all(name in one for one in runs)]
    return {name: interval([one[name] for one in runs]) for name in names}
