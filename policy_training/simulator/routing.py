"""Routing strategies: choose a request's arm from its predictions, and from the requests in flight on every arm.

    score_a = wait_a + prefill_a * prefill_weight_a + steps_a * weight_a        steps_a = (E[tokens] - 1) / tau_a(x)

Weights are those of the router's objectives (`router/load/load_model.py`). With B requests at the arm's least loaded
replica, for a step and for a second of a prefill:

    latency       t(B+1)                              1              the request's own time
    throughput    t(B+1) + B (t(B+1) - t(B))          B + 1          the time of all current requests
    cost          price t(B+1) / (B+1) + 0.1 t(B+1)   price + 0.1    its share of a replica

Where a request would have to wait, it runs later, as the last one in a full batch. Among the replicas of a pool it goes
to the one where it costs all requests least, with the drafter that is best for it there (`PoolReplica.placement_cost`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import numpy.typing as npt

from draftpick.engines.profile.profile import GREEDY, SAMPLED
from draftpick.policy_training.simulator.engine import Arm
from draftpick.policy_training.simulator.fleet import Fleet
from draftpick.policy_training.simulator.replica import PoolReplica, Replica
from draftpick.policy_training.simulator.requests import Requests

Floats = npt.NDArray[np.float64]
Objective = Literal["latency", "throughput", "cost"]
_OWN_OF_COST = 0.1
STRATEGIES = ("throughput", "latency", "cost", "text", "least_loaded", "round_robin", "oracle")


class Strategy(ABC):
    """Chooses an arm for every request."""

    @abstractmethod
    def choose(self, i: int, least_loaded: Sequence[int]) -> int:
        """The arm of request i; `least_loaded[arm]`: requests in flight on its least loaded replica."""

    def place(self, i: int, replicas: Sequence[Replica]) -> Replica | None:
        """The replica of its arm for request i; None: the least loaded one."""
        return None


class RoundRobin(Strategy):
    """The arms in turn, weighted by replicas."""

    def __init__(self, fleet: Fleet) -> None:
        most = max(fleet.replicas)
        turns = chain.from_iterable(
            (arm for arm, count in enumerate(fleet.replicas) if turn < count) for turn in range(most)
        )
        self._turns = list(turns)

    def choose(self, i: int, least_loaded: Sequence[int]) -> int:
        return self._turns[i % len(self._turns)]


class LeastLoaded(Strategy):
    """The arm with the fewest requests in flight on a replica; ties in turn."""

    def choose(self, i: int, least_loaded: Sequence[int]) -> int:
        n = len(least_loaded)
        return min(range(n), key=lambda arm: (least_loaded[arm], (arm - i) % n))


class TextOnly(Strategy):
    """The arm with the shortest time for the unloaded request; ignores load."""

    def __init__(self, costs: "StrategyCosts", tau: Floats, sampled: npt.NDArray[np.bool_]) -> None:
        steps = np.asarray([[row[1] for row in half] for half in costs.step_s])
        self._arms: list[int] = (steps[sampled.astype(int)] / tau).argmin(1).tolist()

    def choose(self, i: int, least_loaded: Sequence[int]) -> int:
        return self._arms[i]


@dataclass(frozen=True, slots=True)
class StrategyCosts:
    """A router's knowledge of its arms. `step_s[sampled][arm][n]`: of a step with n running, up to the maximum.

    `service_s` [arms]: of a mean request on a full replica, to predict waiting times.
    """

    step_s: Sequence[Sequence[Sequence[float]]]
    start_s: Sequence[float]
    start_s_per_token: Sequence[float]
    max_running: Sequence[int]
    service_s: Sequence[float]
    price: Sequence[float]

    @classmethod
    def from_arms(cls, arms: Sequence[Arm], requests: Requests, tau: Floats) -> "StrategyCosts":
        """Compute for these arms; `tau` [n, arms]: predicted for the requests."""
        curves = [[_curve(arm, requests.mean_context, half) for arm in arms] for half in (GREEDY, SAMPLED)]
        steps = max(requests.mean_output_tokens - 1, 0.0) * (1 / tau).mean(0)
        profiles = [arm.modes[0].profile for arm in arms]
        return cls(
            step_s=curves,
            start_s=[p.prefill_s for p in profiles],
            start_s_per_token=[p.prefill_s_per_token for p in profiles],
            max_running=[arm.max_running for arm in arms],
            service_s=[count * curve[-1] for count, curve in zip(steps.tolist(), curves[GREEDY], strict=True)],
            price=[arm.price for arm in arms],
        )

    def prices(self, objective: Objective) -> list[list[list[float]]]:
        """Weight of a step, by sampling mode, arm and current requests. Raises KeyError."""
        price_of = _PRICES[objective]
        return [
            [
                [price_of(curve[n + 1], curve[n], n, price) for n in range(len(curve) - 1)]
                for curve, price in zip(half, self.price, strict=True)
            ]
            for half in self.step_s
        ]


_PRICES: Mapping[Objective, Callable[[float, float, int, float], float]] = {
    "latency": lambda step_s, before_s, there, price: step_s,
    "throughput": lambda step_s, before_s, there, price: step_s + there * (step_s - before_s),
    "cost": lambda step_s, before_s, there, price: price * step_s / (there + 1) + _OWN_OF_COST * step_s,
}
"""From a step's seconds with and without one more request, the current requests, and a replica's price."""


def _curve(arm: Arm, context: float, sampled: int) -> list[float]:
    return [arm.step_s(n, context, sampled) for n in range(arm.max_running + 1)]


class Routed(Strategy):
    """The arm with the lowest score.

    `tau` [n, arms]: predicted acceptance lengths; `tokens`: expected answer lengths, one for all, or [n]. `foreseen`
    [n, columns]: acceptance lengths that placement among the replicas of a pool goes by; None: the least loaded one.
    """

    def __init__(
        self,
        costs: StrategyCosts,
        requests: Requests,
        tau: Floats,
        tokens: Floats | float,
        objective: Objective = "throughput",
        foreseen: Floats | None = None,
    ) -> None:
        self._foreseen = foreseen
        self._costs, self._tau, self._prices = costs, tau, costs.prices(objective)
        self._objective = objective
        expected = np.broadcast_to(np.asarray(tokens, np.float64), (len(requests),))
        self._tokens: list[float] = np.maximum(expected - 1.0, 0.0).tolist()
        self._prompt: list[float] = requests.prompt_tokens.tolist()
        self._sampled: list[int] = requests.sampled.astype(int).tolist()

    def choose(self, i: int, least_loaded: Sequence[int]) -> int:
        scores = self.scores(i, least_loaded)
        return scores.index(min(scores))

    def place(self, i: int, replicas: Sequence[Replica]) -> Replica | None:
        if self._foreseen is None or len(replicas) < 2 or not isinstance(replicas[0], PoolReplica):
            return None
        pools: Sequence[PoolReplica] = replicas  # type: ignore[assignment]  # the replicas of an arm are of one type
        sampled, tau = bool(self._sampled[i]), self._foreseen[i][pools[0].columns].tolist()
        return min(pools, key=lambda one: (one.placement_cost(sampled, tau), one.in_flight))

    def scores(self, i: int, least_loaded: Sequence[int]) -> list[float]:
        """Weighted seconds by arm."""
        costs, prices = self._costs, self._prices[self._sampled[i]]
        tokens, prompt, scores = self._tokens[i], self._prompt[i], []
        for arm, tau in enumerate(self._tau[i].tolist()):
            there, most = least_loaded[arm], costs.max_running[arm]
            read_s, wait_s = costs.start_s[arm] + prompt * costs.start_s_per_token[arm], 0.0
            if there >= most:
                wait_s = (there + 1 - most) / most * costs.service_s[arm]
                there = most - 1
            if self._objective == "throughput":
                read_s *= there + 1
            elif self._objective == "cost":
                read_s *= costs.price[arm] + _OWN_OF_COST
            scores.append(wait_s + read_s + tokens / tau * prices[arm][there])
        return scores


def strategy(name: str, fleet: Fleet, requests: Requests, tau: Floats) -> Strategy:
    """Create a strategy; `tau` [n, columns]: the policy's predictions, in the columns of `requests`.

    `oracle` is `throughput` with known acceptance length and number of tokens of every answer. Raises ValueError for an
    unknown name.
    """
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy {name!r} (known: {', '.join(STRATEGIES)})")
    if name == "round_robin":
        return RoundRobin(fleet)
    if name == "least_loaded":
        return LeastLoaded()
    foreseen = requests.tau if name == "oracle" else tau
    known = np.stack([arm.expected_tau(foreseen, requests.column) for arm in fleet.arms], axis=1)
    costs = StrategyCosts.from_arms(fleet.arms, requests, known)
    if name == "text":
        return TextOnly(costs, known, requests.sampled)
    tokens = requests.output_tokens if name == "oracle" else requests.mean_output_tokens
    objective = name if name in _PRICES else "throughput"
    return Routed(costs, requests, known, tokens, objective, foreseen)  # type: ignore[arg-type]
