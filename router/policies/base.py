"""The interface of all policies: a distribution over the eligible arms, given a context."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, compress
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from draftpick.engines.arms import NONE, drafter_of, engine_of
from draftpick.engines.pool.forecast import MAX_WEIGHT
from draftpick.engines.pool.forecast import Forecast as DrafterForecast
from draftpick.engines.profile.profile import Profile
from draftpick.router.config.sections import ExplorationConfig, Objective
from draftpick.router.features.lexical import stored_context
from draftpick.router.policies.exploration import apply_exploration, apply_wide_exploration
from draftpick.router.policies.neighbourhood import Clusters
from draftpick.router.policies.pool_arms import MENDING_DEVIATION, drafter_name, shares_drafter
from draftpick.router.policies.shapes import Shapes
from draftpick.router.types import Accepted, Context, Decision, LoadTerms

Probabilities = npt.NDArray[np.float64]
_PREDICTED_WEIGHT = 8.0
"""Drafts that a prediction is worth against what the last turns of a session accepted."""
LoadOf = Callable[[Sequence[str]], LoadTerms | None]
"""Current effects of load on each of these arms; None: no engine has any load."""


@dataclass(frozen=True, slots=True)
class DecisionInput:
    """Input of a decision.

    `eligible`: names of arms, at least one. `explore`: maximum probability of exploration (see `exploration`).
    `load_of`: called by policies that use load. `may_explore_widely`: while levels of arms are unknown. `objective`: a
    pool's. `accepted`: in the last turns of the request's session, by drafter
    (`draftpick.router.policies.pool_arms.drafter_name`). `adapter`: of the target that the request asks for, or empty.
    """

    context: Context | None
    eligible: Sequence[str]
    explore: float = 0.0
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    load_of: LoadOf | None = None
    may_explore_widely: bool = False
    objective: Objective = "throughput"
    accepted: Mapping[str, Accepted] = field(default_factory=dict)
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predictions for every arm: `seconds` of a whole answer, corrected by `residual`, and `tpot_s` before correction.

    Under load, `seconds` are weighted by the objective. `unloaded_arm`: index of the fastest arm without load.
    `cluster`: the request's cluster, if corrections made it necessary. `tau`: acceptance lengths before correction, if
    an arm is of a pool; `weight`: how many observations of a pool they are worth.
    """

    seconds: Sequence[float]
    tpot_s: Sequence[float]
    residual: Sequence[float] | None = None
    unloaded_arm: int | None = None
    cluster: int | None = None
    tau: Sequence[float] | None = None
    weight: float = 0.0


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one arm's forecast, for explanations. Times in seconds.

    A step of a request alone takes `step_s` and yields `tau` tokens. `prompt_s` is the time to the first token, of
    which a cached prefix saves `cached_prefix_s`; `tokens` follow it. `slowdown`, `objective_weight`, `wait_s` and
    `prefill_weight`: see `LoadTerms`; `residual`: the correction. Arms other than the default must be faster than it by
    `margin_s`.
    """

    tau: float
    step_s: float
    tokens: float
    prompt_s: float
    cached_prefix_s: float = 0.0
    wait_s: float = 0.0
    slowdown: float = 1.0
    objective_weight: float = 1.0
    prefill_weight: float = 1.0
    residual: float = 0.0
    margin_s: float = 0.0

    @property
    def prefill_s(self) -> float:
        """Prefill of the uncached prompt."""
        return self.prompt_s - self.cached_prefix_s

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.prefill_s + self.wait_s

    @property
    def unloaded_s(self) -> float:
        """Time of the whole answer without load."""
        return self.prompt_s + self._decoding(1.0)

    @property
    def decode_s(self) -> float:
        """Decoding time after the first token."""
        return self._decoding(self.slowdown)

    @property
    def seconds(self) -> float:
        """Time of the whole answer."""
        return self.ttft_s + self.decode_s

    @property
    def weighted_decode_s(self) -> float:
        """Decoding time after the first token, weighted by the objective."""
        return self._decoding(self.objective_weight)

    @property
    def weighted_s(self) -> float:
        """What decides."""
        return self.wait_s + self.prefill_s * self.prefill_weight + self.weighted_decode_s

    def _decoding(self, factor: float) -> float:
        return self.tokens * self.step_s / self.tau * factor * math.exp(self.residual)


Shifts = Sequence[Sequence[float]]
"""Corrections of log TPOT, learned online: [bins, arms]."""


class Policy(ABC):
    """Chooses among `arms`. Subclasses compute probabilities; this class samples, so every choice has a propensity."""

    id: str
    arms: tuple[str, ...]
    featurizer: str | None = None
    """Id of the required featurizer; None: it needs no context."""

    @classmethod
    def shapes(cls, options: Mapping[str, Any]) -> Shapes:
        """Shapes of its artefact's arrays with an axis of arms, under these options."""
        return {}

    @abstractmethod
    def probabilities(self, context: Context | None, eligible: npt.NDArray[np.bool_]) -> Probabilities:
        """Distribution over `arms`, shape `[len(arms)]`: 0 where not eligible, sum 1. At least one arm is eligible."""

    default_arm: int | None = None
    """Index of the best arm over all requests, if known."""
    uses_load: ClassVar[bool] = False
    """Whether the engines' load affects its choice."""
    clusters: Clusters | None = None
    """Its clusters of requests; None: it has none."""
    orders_drafters: bool = False
    """Whether an arm of a pool is an order, its drafter alone may draft, rather than what the pool begins with."""

    @cached_property
    def pools(self) -> Sequence[Mapping[int, str]]:
        """The drafters of each pool, by the indices of their arms."""
        found: dict[str, dict[int, str]] = {}
        for i, arm in enumerate(self.arms):
            if (drafter := drafter_of(arm)) is not None:
                found.setdefault(engine_of(arm), {})[i] = drafter
        return list(found.values())

    def use_profiles(self, profiles: Mapping[str, Profile]) -> Sequence[str]:
        """Take the costs of these arms from their measured profiles; returns the arms whose costs have changed."""
        return ()

    @property
    def foreign_costs(self) -> Sequence[str]:
        """Arms whose costs are not those of this machine but those of the machine that the policy was trained on."""
        return ()

    def cluster(self, context: Context | None) -> int:
        """The cluster of a context (`draftpick.router.policies.neighbourhood.Clusters.assign`); 0 without clusters."""
        return 0

    def tau(self, context: Context) -> Probabilities | None:
        """Expected acceptance lengths [arms], at least 1; None if the policy predicts none."""
        return None

    def neighbours(self, context: Context) -> float | None:
        """Effective number of training requests near a context; None if the policy does not know."""
        return None

    def is_far(self, context: Context) -> bool:
        """True if fewer training requests are near a context than near almost all of them."""
        return False

    def intervals(self, context: Context) -> Sequence[tuple[float, float]] | None:
        """Lower and upper bound of every arm's decoding time relative to its forecast, if the default arm takes as long
        as predicted; None without calibration."""
        return None

    def acceptance_lengths(self, vectors: npt.NDArray[np.float32]) -> Probabilities | None:
        """`tau` of requests with these contexts [n, d]: [n, arms]."""
        found = [tau for v in vectors if (tau := self.tau(stored_context(v, str(self.featurizer)))) is not None]
        return np.stack(found) if found else None

    def score(
        self,
        context: Context | None,
        eligible: npt.NDArray[np.bool_],
        shifts: Shifts | None = None,
        load: LoadTerms | None = None,
    ) -> tuple[Probabilities, Forecast | None]:
        """`probabilities`, and the forecast behind them if the policy predicts times, under `shifts` and `load`."""
        return self.probabilities(context, eligible), None

    def terms(
        self, context: Context, shifts: Shifts | None = None, load: LoadTerms | None = None
    ) -> Sequence[Terms] | None:
        """The terms of every arm's forecast; None if the policy predicts no times."""
        return None

    def decide(
        self,
        given: DecisionInput,
        rng: np.random.Generator,
        shifts: Shifts | None = None,
        level_deviations: Sequence[float] | None = None,
    ) -> Decision:
        """Draw an eligible arm. Raises ValueError if the policy returns no distribution.

        `level_deviations` [arms]: see `apply_wide_exploration`; None: exploration is narrow.
        """
        is_eligible = [arm in given.eligible for arm in self.arms]
        load = given.load_of(self.arms) if given.load_of is not None and self.uses_load else None
        if given.accepted and given.context is not None:
            shifts = self._with_session(given.context, given.accepted, shifts)
        weighed, forecast = self.score(given.context, np.asarray(is_eligible), shifts, load)
        shares: list[float] = weighed.tolist()
        total = sum(shares)
        # Ineligible arms have exactly 0 and do not change sums.
        if not (0 < total == sum(compress(shares, is_eligible)) and min(shares) >= 0 and math.isfinite(total)):
            raise ValueError(f"policy {self.id} gave no distribution: {shares}")
        wide, rate, seconds = None, given.explore, forecast.seconds if forecast else None
        explorable = is_eligible
        if self.pools and (rate or level_deviations is not None):
            explorable = self._one_arm_of_each_pool(is_eligible, shares, seconds)
        if level_deviations is not None and seconds is not None:
            wide = apply_wide_exploration(shares, explorable, seconds, level_deviations, given.exploration)
        if wide is not None:
            shares, rate = wide, given.exploration.wide_rate
        elif rate:
            explored_s = self._seconds_beside_pools(is_eligible, seconds) if self.pools else seconds
            shares = apply_exploration(shares, explorable, explored_s, rate, given.exploration)
        index = _sample_index(shares, rng.random())
        probabilities = dict(zip(self.arms, shares, strict=True))
        to_pool = self._pool_forecast(index, is_eligible, forecast, given) if self.pools else None
        if forecast is None:
            return Decision(
                self.arms[index], shares[index], probabilities, self.id, exploration_rate=rate, forecast=to_pool
            )
        return Decision(
            self.arms[index],
            shares[index],
            probabilities,
            self.id,
            exploration_rate=rate,
            level_deviations=None if wide is None else level_deviations,
            predicted_tpot_s=forecast.tpot_s,
            residual=forecast.residual,
            load=load,
            unloaded_arm=None if forecast.unloaded_arm is None else self.arms[forecast.unloaded_arm],
            cluster=forecast.cluster,
            predicted_tau=forecast.tau,
            forecast=to_pool,
        )

    def _one_arm_of_each_pool(
        self, eligible: Sequence[bool], shares: Sequence[float], seconds: Sequence[float] | None
    ) -> list[bool]:
        """`eligible` with one arm of each pool, the preferred one: a pool scores all its drafters on every request, so
        nothing is learned by choosing another one."""
        left = list(eligible)
        for pool in self.pools:
            arms = [arm for arm in pool if eligible[arm]]
            kept = max(arms, key=lambda arm: (shares[arm], -seconds[arm] if seconds else 0.0), default=None)
            for arm in arms:
                left[arm] = arm == kept
        return left

    def _seconds_beside_pools(
        self, eligible: Sequence[bool], seconds: Sequence[float] | None
    ) -> Sequence[float] | None:
        """`seconds` by which narrow exploration weighs the arms: infinite, which leaves the least share, for an engine
        whose drafter an eligible pool has. The pool scores that drafter on every request."""
        if seconds is None or not any(eligible[arm] for pool in self.pools for arm in pool):
            return seconds
        return [math.inf if shared else one for one, shared in zip(seconds, self._shares_drafter, strict=True)]

    @cached_property
    def _shares_drafter(self) -> Sequence[bool]:
        return shares_drafter(self.arms)

    def beyond_pool(self, default: int) -> list[float]:
        """How far an arm must be faster than the pool of `default` beyond what it is predicted, as a logarithm, [arms]:
        what a pool gains by changing drafters differs by request, and no policy foresees it."""
        pool = next((pool for pool in self.pools if default in pool), None)
        return [0.0 if pool is None or arm in pool else MENDING_DEVIATION for arm in range(len(self.arms))]

    def arm_of_engine(self, arm: int, eligible: Sequence[bool], seconds: Sequence[float]) -> int:
        """The arm itself; of a pool, the fastest eligible one, whose time the pool is predicted to take."""
        pool = next((pool for pool in self.pools if arm in pool), None)
        return arm if pool is None else min((i for i in pool if eligible[i]), key=seconds.__getitem__, default=arm)

    def _with_session(self, context: Context, accepted: Mapping[str, Accepted], shifts: Shifts | None) -> Shifts | None:
        """`shifts`, for this context, moved so that each arm is expected to have accepted what it is predicted to, and
        what its drafter had in the last turns, by their weights. Its correction counts as one of acceptance, but for
        that of a pool's steps without drafts."""
        tau = self.tau(context)
        if tau is None:
            return shifts
        row = [0.0] * len(self.arms) if shifts is None else list(shifts[self.cluster(context) % len(shifts)])
        steps = [0.0] * len(row)
        for pool in self.pools:
            plain = next((i for i, drafter in pool.items() if drafter == NONE), None)
            for i in pool:
                steps[i] = 0.0 if plain is None else row[plain]
        for i, arm in enumerate(self.arms):
            if (seen := accepted.get(name := drafter_name(arm))) is not None and name != NONE:
                expected = math.log(tau[i]) - (row[i] - steps[i])
                row[i] -= seen.weight / (seen.weight + _PREDICTED_WEIGHT) * (seen.log_tau - expected)
        return [row]

    def _pool_forecast(
        self, arm: int, eligible: Sequence[bool], forecast: Forecast | None, given: DecisionInput
    ) -> DrafterForecast | None:
        """What the pool of an arm is sent; None if the arm is of no pool. A drafter that is not eligible drafts nothing
        that is accepted."""
        pool = next((pool for pool in self.pools if arm in pool), None)
        if pool is None:
            return None
        if self.orders_drafters:
            return DrafterForecast(objective=given.objective, only=pool[arm])
        seen = {drafter: given.accepted[drafter] for drafter in pool.values() if drafter in given.accepted}
        if forecast is None or forecast.tau is None:
            if not seen:
                return DrafterForecast(objective=given.objective)
            weight = max(one.weight for one in seen.values())
            return DrafterForecast({name: math.exp(one.log_tau) for name, one in seen.items()}, weight, given.objective)
        tau, residual = forecast.tau, forecast.residual
        steps = next((i for i, drafter in pool.items() if drafter == NONE), arm)  # its correction is that of all steps
        expected = {
            drafter: max(tau[i] * (1.0 if residual is None else math.exp(residual[steps] - residual[i])), 1.0)
            if eligible[i]
            else 1.0
            for i, drafter in pool.items()
            if drafter != NONE
        }
        weight = forecast.weight + max((one.weight for one in seen.values()), default=0.0)
        return DrafterForecast(expected, min(weight, MAX_WEIGHT), given.objective)


def _sample_index(probabilities: Sequence[float], at: float) -> int:
    """Inverse-CDF sampling: the index that `at` in [0, 1) selects; never one of probability 0."""
    sums = list(accumulate(probabilities))
    chosen = bisect_right(sums, at * sums[-1])
    # Rounding may leave the sum below `at`.
    return chosen if chosen < len(probabilities) else max(i for i, share in enumerate(probabilities) if share)


def masked_softmax(logits: Probabilities, eligible: npt.NDArray[np.bool_]) -> Probabilities:
    """Softmax over the eligible arms, exact 0 elsewhere. Shape `[arms]`."""
    weights = np.exp(np.where(eligible, logits - logits[eligible].max(), -np.inf))
    return np.asarray(weights / weights.sum())


def one_hot_with_floor(arm: int, eligible: npt.NDArray[np.bool_], floor: float) -> Probabilities:
    """Probability `floor` for each other eligible arm, the rest for one arm (an index). Shape `[arms]`."""
    result = np.multiply(eligible, floor, dtype=np.float64)
    result[arm] += 1.0 - result.sum() if floor else 1.0
    return result
