"""A policy that knows what it does not know: `TauCostPolicy` with predictions that lean on the prior far from the
training requests, and conformal intervals.

Of the arms whose time is, by its upper bound, below the default's times 1 + tolerance, it chooses the one with the
least expected time; without such an arm, the default.
"""

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt

from draftpick.engines.arms import drafter_of
from draftpick.engines.profile.profile import Profile
from draftpick.router.errors import PolicyRejected
from draftpick.router.policies.neighbourhood import Neighbourhood
from draftpick.router.policies.pool_arms import MENDING
from draftpick.router.policies.regressors import Regressor
from draftpick.router.policies.shapes import Arrays, Shapes, check_shapes
from draftpick.router.policies.tau_cost import Floats, TauCostPolicy
from draftpick.router.types import Context, Vector

_MIN_PRIOR = 0.02
_NEAR_WEIGHT = 8.0
"""What a prediction near the training requests is worth to a pool, in drafts."""
LOW, HIGH, BOUND = range(3)
"""Columns of `conformal`: the ends of the interval shown, and the upper bound that decides."""
_SHAPES: Shapes = {"prior": (2, "arms"), "conformal": (2, "arms", "arms", 3)}


class CalibratedPolicy(TauCostPolicy):
    """Arrays, besides those of `TauCostPolicy` and `Neighbourhood`: `prior` [2, arms], mean steps per token (1 / tau)
    over the training tasks, greedy and sampled; `conformal` [2, default arms, arms, 3]: quantiles of the error of log
    (time per token of an arm / of a default arm), over the inflation of `Neighbourhood.doubt`. Option `tolerance`: see
    above.

    The error does not depend on costs of steps, so neither do the quantiles (split conformal prediction; Papadopoulos
    et al. 2002, Lei et al. 2018).
    """

    def __init__(
        self,
        id: str,
        arms: tuple[str, ...],
        featurizer: str,
        regressor: Regressor,
        arrays: Arrays,
        options: dict[str, Any],
    ) -> None:
        super().__init__(id, arms, featurizer, regressor, arrays, options)
        check_shapes(arrays, _SHAPES, arms=len(arms))
        self.neighbourhood = Neighbourhood(arrays, regressor.dimension)
        self._prior = arrays["prior"].astype(np.float64)
        if not ((self._prior >= _MIN_PRIOR) & (self._prior <= 1.0)).all():
            raise PolicyRejected(f"array prior must hold steps per token, {_MIN_PRIOR} to 1")
        self._conformal = arrays["conformal"].astype(np.float64)
        self._tolerance = float(options.get("tolerance", 0.03))
        if not 0 <= self._tolerance <= 1:
            raise PolicyRejected(f"option tolerance is {self._tolerance}; it must be a number from 0 to 1")

    @classmethod
    def shapes(cls, options: Mapping[str, Any]) -> Shapes:
        return {**super().shapes(options), **_SHAPES}

    def use_profiles(self, profiles: Mapping[str, Profile]) -> Sequence[str]:
        """Take the costs of these arms; with new ones, the default is the best arm over the training tasks by them."""
        if changed := super().use_profiles(profiles):
            modes = len(self._prior)
            mended = np.asarray([1.0 if drafter_of(arm) is None else MENDING for arm in self.arms])
            self.default_arm = int(((self._step_s[:, :modes] * self._prior.T).sum(1) * mended).argmin())
        return changed

    def neighbours(self, context: Context) -> float:
        return self.neighbourhood.neighbours(self._regressor.scaled(context.vector))

    def is_far(self, context: Context) -> bool:
        return self.neighbours(context) < self.neighbourhood.min_neighbours

    def intervals(self, context: Context) -> Sequence[tuple[float, float]]:
        deviation = self._predict(self._regressor.scaled(context.vector), context.sampled)[1].item(0)
        rows = np.exp(deviation * self._conformal[int(context.sampled), self.default_arm, :, LOW : HIGH + 1])
        return [(float(low), float(high)) for low, high in rows]

    def _predict(self, z: Vector, sampled: bool) -> tuple[Floats, Floats]:
        """Mean of log tau, and the inflation of its deviation, the same for all arms."""
        mean = self._regressor.mean(z, int(sampled))
        weight, inflation = self.neighbourhood.doubt(z)
        steps = (1.0 - weight) * np.exp(-mean) + weight * self._prior[int(sampled)]
        return -np.log(steps), np.full(len(mean), inflation)

    def _weight(self, deviation: Floats) -> float:
        return max(_NEAR_WEIGHT / float(deviation[0]) ** 2, 1.0)

    def _margins(
        self, default: int, seconds: Sequence[float], decode_s: Floats, deviation: Floats, sampled: bool
    ) -> Sequence[float]:
        upper = deviation * self._conformal[int(sampled), default, :, BOUND]
        upper = np.expm1(np.maximum(upper, self.beyond_pool(default)) if self.pools else upper)
        margins: list[float] = (decode_s * upper - self._tolerance * seconds[default]).tolist()
        return margins

    def _best_arm(
        self,
        seconds: Sequence[float],
        decode_s: Floats,
        deviation: Floats,
        eligible: npt.NDArray[np.bool_],
        sampled: bool,
    ) -> int:
        default = self.default_arm
        if self.pools:
            default = self.arm_of_engine(default, eligible.tolist(), seconds)
        margins = self._margins(default, seconds, decode_s, deviation, sampled)
        arms = list(compress(range(len(seconds)), eligible.tolist()))
        if not eligible[default]:  # nothing to compare with: the least upper bound
            return min(arms, key=lambda arm: seconds[arm] + margins[arm])
        good = [arm for arm in arms if arm == default or seconds[arm] + margins[arm] < seconds[default]]
        return min(good, key=seconds.__getitem__)
