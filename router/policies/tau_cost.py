"""The default policy: minimises predicted time, from a learned tau and profiled costs of a step.

seconds_a = start_a + prompt tokens * per_token_a + (output tokens - 1) * step_a / tau_a(x)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt

from draftpick.engines.profile.profile import Profile
from draftpick.router.errors import PolicyRejected
from draftpick.router.policies import regressors
from draftpick.router.policies.base import Forecast, Policy, Probabilities, Shifts, Terms, one_hot_with_floor
from draftpick.router.policies.costs import equal_costs, merge_costs
from draftpick.router.policies.neighbourhood import Clusters
from draftpick.router.policies.regressors import Regressor
from draftpick.router.policies.shapes import Arrays, Shapes, check_shapes
from draftpick.router.types import Context, LoadTerms, Vector

Floats = npt.NDArray[np.floating]

_LONGEST = math.log(1e6)
_DRAFT_VARIANCE, _MIN_WEIGHT, _MAX_WEIGHT = 0.35, 1.0, 32.0
"""Variance of the log of the tokens of one step, and bounds of a prediction's weight in drafts."""
_COSTS: Shapes = {"step_s": ("arms", 2), "start_s": ("arms",), "per_token_s": ("arms",)}


class TauCostPolicy(Policy):
    """Chooses the arm with the shortest expected time, and `default` if the gain is uncertain.

    Costs are those of each arm's profile (`use_profiles`), measured where the engine runs. An arm without a profile
    takes those of the artefact, scaled by the median ratio of the profiles to the artefact: costs of another machine.

    Arrays: those of its regressor (log tau), and, for arms without a profile, costs (equal ones if absent): `step_s`
    [arms, 2], seconds of a decoding step, greedy and sampled; `start_s` and `per_token_s` [arms] of the time to the
    first token; optionally `length` [d + 1]: weights of z and a constant that predict the log of the output tokens.
    Options: `regressor`; `default`, an arm; `z` and `switch_cost`: another arm must be faster than the default by more
    than `z` standard deviations of its own time plus this share of the default's time; `output_tokens`: expected output
    tokens without `length`; `floor`: minimum probability of every arm.
    """

    uses_load = True

    def __init__(
        self,
        id: str,
        arms: tuple[str, ...],
        featurizer: str,
        regressor: Regressor,
        arrays: Arrays,
        options: dict[str, Any],
    ) -> None:
        arrays = {**equal_costs(len(arms)), **arrays}
        check_shapes(arrays, _COSTS, arms=len(arms))
        self.id, self.arms, self.featurizer = id, arms, featurizer
        self._regressor = regressor
        if (points := regressor.requests) is not None and len(points):
            self.clusters = Clusters.from_points(points)
        self._artifact_costs = tuple(arrays[name].astype(np.float64) for name in _COSTS)
        self._profiles: dict[str, Profile] = {}
        self._step_s, self._start_s, self._per_token_s = merge_costs(self._artifact_costs, arms, {})
        self.default_arm: int = arms.index(options["default"])
        self._z, self._switch_cost = float(options["z"]), float(options["switch_cost"])
        self._length = arrays.get("length")
        if self._length is not None:
            check_shapes(arrays, {"length": (regressor.dimension + 1,)})
        self._output_tokens, self._floor = float(options["output_tokens"]), float(options["floor"])

    @classmethod
    def from_artifact(cls, id: str, manifest: dict[str, Any], arrays: Arrays) -> "TauCostPolicy":
        """The policy of an artefact (see `draftpick.router.policies.artifact`). Raises `PolicyRejected`."""
        arms = tuple(manifest["arms"])
        options = {"z": 0.0, "switch_cost": 0.0, "floor": 0.0, **manifest.get("options", {})}
        if options.get("default") not in arms:
            raise PolicyRejected(f"option default names {options.get('default')!r}, which is not one of {list(arms)}")
        limits = {"z": 100.0, "switch_cost": 1.0, "floor": 1 / len(arms), "output_tokens": 1e6}
        for name, most in limits.items():
            value = options.get(name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
                raise PolicyRejected(f"option {name} is {value!r}; it must be a number from 0 to {most:g}")
        regressor = regressors.make(options.get("regressor"), arrays, len(arms))
        return cls(id, arms, manifest["featurizer"], regressor, arrays, options)

    @classmethod
    def shapes(cls, options: Mapping[str, Any]) -> Shapes:
        return {**_COSTS, **regressors.shapes(options.get("regressor"))}

    @property
    def dimension(self) -> int:
        """Dimension of its contexts."""
        return self._regressor.dimension

    def use_profiles(self, profiles: Mapping[str, Profile]) -> Sequence[str]:
        known = {arm: profiles[arm] for arm in self.arms if arm in profiles}
        before, self._profiles = self._step_s, known
        self._step_s, self._start_s, self._per_token_s = merge_costs(self._artifact_costs, self.arms, known)
        changed = (self._step_s != before).any(1).tolist()
        return list(compress(self.arms, changed))

    @property
    def foreign_costs(self) -> Sequence[str]:
        return [arm for arm in self.arms if arm not in self._profiles]

    def tau(self, context: Context) -> Probabilities:
        z = self._regressor.scaled(context.vector)
        mean = self._predict(z, context.sampled)[0]
        return np.asarray(np.exp(np.maximum(mean, 0.0)), np.float64)

    def seconds(self, context: Context) -> tuple[Probabilities, Probabilities]:
        """Expected seconds of the request on every arm and their standard deviations, each [arms]."""
        forecast, decode_s, deviation = self._forecast(context, None)
        return np.asarray(forecast.seconds), decode_s * deviation

    def score(
        self,
        context: Context | None,
        eligible: npt.NDArray[np.bool_],
        shifts: Shifts | None = None,
        load: LoadTerms | None = None,
    ) -> tuple[Probabilities, Forecast | None]:
        if context is None:
            raise ValueError(f"policy {self.id} needs a context")
        forecast, decode_s, deviation = self._forecast(context, shifts, load)
        seconds = forecast.seconds
        if not all(map(math.isfinite, seconds)):
            raise ValueError(f"policy {self.id} computed times that are not finite")
        best = self._best_arm(seconds, decode_s, deviation, eligible, context.sampled)
        return one_hot_with_floor(best, eligible, self._floor), forecast

    def _best_arm(
        self,
        seconds: Sequence[float],
        decode_s: Floats,
        deviation: Floats,
        eligible: npt.NDArray[np.bool_],
        sampled: bool,
    ) -> int:
        """The arm with the least `seconds`, if it saves its margin against the default; else the default."""
        best = min(compress(range(len(seconds)), eligible.tolist()), key=seconds.__getitem__)
        default = self.default_arm
        if self.pools:
            default = self.arm_of_engine(default, eligible.tolist(), seconds)
        if eligible[default]:
            margin_s = self._margins(default, seconds, decode_s, deviation, sampled)[best]
            if seconds[default] - seconds[best] <= margin_s:
                return default
        return best

    def _margins(
        self, default: int, seconds: Sequence[float], decode_s: Floats, deviation: Floats, sampled: bool
    ) -> Sequence[float]:
        """Seconds [arms] by which an arm must be faster than `default`. `deviation`: of log `decode_s`, [arms]."""
        margin_s = self._z * decode_s * deviation
        if self.pools:
            margin_s = np.maximum(margin_s, decode_s * np.expm1(self.beyond_pool(default)))
        margins: list[float] = (margin_s + self._switch_cost * seconds[default]).tolist()
        return margins

    def _predict(self, z: Vector, sampled: bool) -> tuple[Floats, Floats]:
        """Mean and standard deviation of log tau, each [arms], for a scaled context."""
        return self._regressor(z, sampled)

    def cluster(self, context: Context | None) -> int:
        if context is None or self.clusters is None:
            return 0
        return self.clusters.assign(self._regressor.scaled(context.vector))

    def terms(
        self, context: Context, shifts: Shifts | None = None, load: LoadTerms | None = None
    ) -> Sequence[Terms] | None:
        forecast, decode_s, deviation = self._forecast(context, shifts, load)
        unloaded = self._forecast(context, None)[0]
        default = self.arm_of_engine(self.default_arm, [True] * len(self.arms), forecast.seconds)
        margins, found = self._margins(default, forecast.seconds, decode_s, deviation, context.sampled), []
        for i, tau in enumerate(self.tau(context).tolist()):
            tokens, tpot_s = self.tokens(context) - 1.0, unloaded.tpot_s[i]
            residual = 0.0 if forecast.residual is None else float(forecast.residual[i])
            term = Terms(tau, tpot_s * tau, tokens, unloaded.seconds[i] - tokens * tpot_s, residual=residual)
            if load is not None:
                cached_tokens = min(load.cached_prefix_tokens[i], context.prompt_tokens)
                term = replace(
                    term, slowdown=load.slowdown[i], objective_weight=load.objective_weight[i], wait_s=load.wait_s[i],
                    cached_prefix_s=cached_tokens * self._per_token_s.item(i), prefill_weight=load.prefill_weight[i],
                )  # fmt: skip
            found.append(replace(term, margin_s=margins[i] if i != default else 0.0))
        return found

    def probabilities(self, context: Context | None, eligible: npt.NDArray[np.bool_]) -> Probabilities:
        return self.score(context, eligible)[0]

    def tokens(self, context: Context) -> float:
        """Expected output tokens, between 1 and `max_tokens`."""
        return self._tokens(context, self._regressor.scaled(context.vector))

    def _tokens(self, context: Context, z: Vector) -> float:
        expected = self._output_tokens
        if self._length is not None:
            expected = math.exp(min(float(z @ self._length[:-1]) + self._length.item(-1), _LONGEST))
        return max(min(expected, context.max_tokens), 1.0)

    def _forecast(
        self, context: Context, shifts: Shifts | None, load: LoadTerms | None = None
    ) -> tuple[Forecast, Floats, Floats]:
        """The forecast, corrected by `shifts` and `load`, its decoding times [arms] and the standard deviations of
        their logarithms [arms]."""
        z = self._regressor.scaled(context.vector)
        mean, deviation = self._predict(z, context.sampled)
        tokens = self._tokens(context, z) - 1.0
        tpot_s = self._step_s[:, context.sampled + context.truncated] * np.exp(np.minimum(-mean, 0.0))
        decode_s, shift, cluster = tokens * tpot_s, None, None
        if shifts is not None:
            cluster = self.clusters.assign(z) if self.clusters is not None else 0
            shift = shifts[cluster % len(shifts)]  # a single row, as in records, applies to all clusters
            decode_s = decode_s * np.exp(shift)
        prompt_tokens = context.prompt_tokens
        start_s = self._start_s + prompt_tokens * self._per_token_s
        tau: Sequence[float] | None = np.exp(np.maximum(mean, 0.0)).tolist() if self.pools else None
        weight = self._weight(deviation) if self.pools else 0.0
        if load is None:
            seconds = (start_s + decode_s).tolist()
            return Forecast(seconds, tpot_s.tolist(), shift, None, cluster, tau, weight), decode_s, deviation
        unloaded = int((start_s + decode_s).argmin())
        read_s = start_s - np.minimum(load.cached_prefix_tokens, prompt_tokens) * self._per_token_s
        start_s = read_s * load.prefill_weight + load.wait_s
        tpot_s, decode_s = tpot_s * load.slowdown, decode_s * load.objective_weight
        seconds = (start_s + decode_s).tolist()
        return Forecast(seconds, tpot_s.tolist(), shift, unloaded, cluster, tau, weight), decode_s, deviation

    def _weight(self, deviation: Floats) -> float:
        """How many drafts of a pool a prediction is worth: variance of one draft's log tau over that of the
        prediction, whose standard deviations are `deviation` [arms]."""
        return float(min(max(_DRAFT_VARIANCE / np.square(deviation).mean(), _MIN_WEIGHT), _MAX_WEIGHT))
