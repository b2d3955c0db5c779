"""Who chooses the arm of a request: from what is expected of it, and from the requests in flight on every arm.

    score_a = TTFT_a + steps_a * (t_a(B + 1) + w * B * (t_a(B + 1) - t_a(B)))      steps_a = (E[tokens] - 1) / tau_a(x)

B: requests in flight on the arm's least loaded replica. With w = 1 the slow-down of those that run already counts like
the request's own time, with w = 0 it is not seen. Where a request would wait, it runs as the last that has room, later.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from engines.profile import GREEDY, SAMPLED
from policy_training.simulator.arm import Arm
from policy_training.simulator.fleet import Fleet
from policy_training.simulator.requests import Requests

Floats = npt.NDArray[np.float64]
STRATEGIES = ("routed", "latency", "cost", "text", "least_loaded", "round_robin", "oracle")


class Strategy(ABC):
    """Chooses an arm for every request."""

    @abstractmethod
    def choose(self, i: int, least: Sequence[int]) -> int:
        """The arm of request i; `least[arm]`: requests in flight on its least loaded replica."""


class Fixed(Strategy):
    """Always the same arm."""

    def __init__(self, arm: int = 0) -> None:
        self._arm = arm

    def choose(self, i: int, least: Sequence[int]) -> int:
        return self._arm


class RoundRobin(Strategy):
    """The arms in turn, each as often as it has replicas."""

    def __init__(self, fleet: Fleet) -> None:
        most = max(fleet.replicas)
        turns = chain.from_iterable(
            (arm for arm, count in enumerate(fleet.replicas) if turn < count) for turn in range(most)
        )
        self._turns = list(turns)

    def choose(self, i: int, least: Sequence[int]) -> int:
        return self._turns[i % len(self._turns)]


class LeastLoaded(Strategy):
    """The arm with the least requests in flight on a replica; those that tie in turn."""

    def choose(self, i: int, least: Sequence[int]) -> int:
        n = len(least)
        return min(range(n), key=lambda arm: (least[arm], (arm - i) % n))


class TextOnly(Strategy):
    """The arm of the least time were the request alone; what else runs is not seen."""

    def __init__(self, costs: "Costs", tau: Floats, sampled: npt.NDArray[np.bool_]) -> None:
        steps = np.asarray([[row[1] for row in half] for half in costs.step_s])
        self._arms: list[int] = (steps[sampled.astype(int)] / tau).argmin(1).tolist()

    def choose(self, i: int, least: Sequence[int]) -> int:
        return self._arms[i]


@dataclass(frozen=True, slots=True)
class Costs:
    """What a router knows of its arms. `step_s[half][arm][n]`: of a step with n running, up to what runs at once.

    `mean_steps` [arms]: steps of a usual request, by which one that waits foresees when others end.
    """

    step_s: Sequence[Sequence[Sequence[float]]]
    start_s: Sequence[float]
    start_s_per_token: Sequence[float]
    max_running: Sequence[int]
    mean_steps: Sequence[float]
    price: Sequence[float]

    @classmethod
    def of(cls, arms: Sequence[Arm], made: Requests, tau: Floats) -> "Costs":
        """Of these arms; `tau` [n, arms]: what is expected of the requests."""
        context = float(made.prompt_tokens.mean() + made.output_tokens.mean() / 2)
        steps = max(made.mean_output_tokens - 1, 0.0) * (1 / tau).mean(0)
        profiles = [arm.modes[0].profile for arm in arms]
        return cls(
            [[_curve(arm, context, half) for arm in arms] for half in (GREEDY, SAMPLED)],
            [p.prefill_s for p in profiles],
            [p.prefill_s_per_token for p in profiles],
            [arm.max_running for arm in arms],
            steps.tolist(),
            [arm.price for arm in arms],
        )


def _curve(arm: Arm, context: float, half: int) -> list[float]:
    return [arm.step_s(n, context, half) for n in range(arm.max_running + 1)]


class Routed(Strategy):
    """The arm of the least score: `weight` 0 for the least latency, 1 for the most throughput.

    `tau` [n, arms]: acceptance lengths as they are foreseen; `tokens`: expected answer lengths, one for all, or [n].
    """

    def __init__(self, costs: Costs, made: Requests, tau: Floats, tokens: Floats | float, weight: float = 1.0) -> None:
        self._costs, self._tau, self._weight = costs, tau, weight
        expected = np.broadcast_to(np.asarray(tokens, np.float64), (len(made),))
        self._tokens: list[float] = np.maximum(expected - 1.0, 0.0).tolist()
        self._prompt: list[float] = made.prompt_tokens.tolist()
        self._half: list[int] = made.sampled.astype(int).tolist()
        self._arms = range(tau.shape[1])

    def choose(self, i: int, least: Sequence[int]) -> int:
        scores = self.scores(i, least, self._weight)
        return scores.index(min(scores))

    def scores(self, i: int, least: Sequence[int], weight: float) -> list[float]:
        """Seconds by arm, the others' slow-down among them as `weight` says."""
        costs, curves = self._costs, self._costs.step_s[self._half[i]]
        tokens, prompt, scores = self._tokens[i], self._prompt[i], []
        for arm, tau in enumerate(self._tau[i].tolist()):
            running, curve = least[arm], curves[arm]
            ttft_s = costs.start_s[arm] + prompt * costs.start_s_per_token[arm]
            if (ahead := running - costs.max_running[arm] + 1) > 0:
                ttft_s += ahead * costs.mean_steps[arm] * curve[-1] / costs.max_running[arm]
                running -= ahead
            step_s = curve[running + 1]
            step_s += weight * running * (step_s - curve[running])
            scores.append(ttft_s + tokens / tau * step_s)
        return scores


class Cheapest(Routed):
    """Of the arms whose latency is at most `slack` above the least, the one whose share of a replica costs least."""

    def __init__(self, costs: Costs, made: Requests, tau: Floats, tokens: Floats | float, slack: float = 0.25) -> None:
        super().__init__(costs, made, tau, tokens, weight=0.0)
        self._slack = slack

    def choose(self, i: int, least: Sequence[int]) -> int:
        scores = self.scores(i, least, 0.0)
        most, costs, curves = (1 + self._slack) * min(scores), self._costs, self._costs.step_s[self._half[i]]
        tau = self._tau[i].tolist()
        prices = [
            (costs.price[arm] * curves[arm][at] / (tau[arm] * at), arm)
            for arm, score in enumerate(scores)
            if score <= most
            for at in (min(least[arm] + 1, costs.max_running[arm]),)
        ]
        return min(prices)[1]


def strategy(name: str, fleet: Fleet, made: Requests, tau: Floats) -> Strategy:
    """The strategy of that name; `tau` [n, columns]: what the policy foresees, in the columns of `made`.

    `oracle` knows the acceptance length and the number of tokens of every answer. Raises ValueError for an unknown
    name.
    """
    if name not in STRATEGIES:
        raise ValueError(f"no strategy {name!r} (there are: {', '.join(STRATEGIES)})")
    if name == "round_robin":
        return RoundRobin(fleet)
    if name == "least_loaded":
        return LeastLoaded()
    columns = [made.column(arm.modes[0].column) for arm in fleet.arms]
    known = (made.tau if name == "oracle" else tau)[:, columns]
    costs = Costs.of(fleet.arms, made, known)
    if name == "text":
        return TextOnly(costs, known, made.sampled)
    tokens = made.output_tokens if name == "oracle" else made.mean_output_tokens
    if name == "cost":
        return Cheapest(costs, made, known, tokens)
    return Routed(costs, made, known, tokens, weight=0.0 if name == "latency" else 1.0)
