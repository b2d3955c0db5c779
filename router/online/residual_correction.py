"""Corrects a policy's times from live answers: a factor for every arm and cluster.

Multiplicative weights (Hedge; Freund, Schapire 1997) over arms: an arm's predicted time per token is multiplied by
exp(shift), where shift is the discounted mean of log(TPOT observed / predicted) on that arm and cluster
(`draftpick.router.policies.neighbourhood`). A cell with few answers is shrunk to its arm, an arm to the overall mean.
One answer moves a mean by at most about `max_log_step / window`.

The same sums, with squares, tell how well the level of each arm is known: the standard error of its mean residual.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from draftpick.router.config.sections import CorrectionConfig

Floats = npt.NDArray[np.float64]
_PRIOR = 1.5
"""Prior weight, in answers, of a cell's arm, and of an arm's overall mean."""
_PRIOR_VARIANCE, _PRIOR_ANSWERS = 0.0625, 2.0
"""Variance of a residual within an arm, and its weight in answers."""


class ResidualCorrection:
    """Sums of residuals by cluster and arm. `answers`: weight of the answers of each arm at this router, since its
    reset. `prior` [arms]: the corrections before the first answer.

    Several routers are summed: each shares its sums (`local_state`) and adds those of the others (`merge`).
    """

    def __init__(
        self, config: CorrectionConfig, num_clusters: int, num_arms: int, prior: Sequence[float] | None = None
    ) -> None:
        self._config = config
        self._prior = np.zeros(num_arms) if prior is None else np.asarray(prior)
        self._local, self._peers, self._total = np.zeros((3, 3, num_clusters, num_arms))
        self.answers = [0.0] * num_arms
        self.shape = num_clusters, num_arms

    def update(self, cluster: int, arm: int, residual: float, weight: float = 1.0) -> None:
        """Add log(TPOT observed / predicted) of one answer. `weight`: of its API key, in (0, 1]."""
        so_far, step = self.residual(cluster, arm), self._config.max_log_step
        bounded = so_far + min(max(residual - so_far, -step), step)
        cell = self._local[:, cluster, arm]
        cell *= 1.0 - weight / self._config.window
        cell += (weight, weight * bounded, weight * bounded * bounded)
        self.answers[arm] += weight
        self._total[:, cluster, arm] = cell + self._peers[:, cluster, arm]

    def weight(self, cluster: int, arm: int) -> float:
        """Effective number of answers of an arm on a cluster."""
        return float(self._total[0, cluster, arm])

    def residual(self, cluster: int, arm: int) -> float:
        """The correction of one cell."""
        weights, sums, _ = self._total
        overall = sums.sum() / (weights.sum() + _PRIOR) + self._prior[arm]
        of_arm = (sums[:, arm].sum() + _PRIOR * overall) / (weights[:, arm].sum() + _PRIOR)
        return float((sums[cluster, arm] + _PRIOR * of_arm) / (weights[cluster, arm] + _PRIOR))

    def residuals(self) -> Floats:
        """The corrections of log TPOT of all cells, [bins, arms]."""
        weights, sums, _ = self._total
        overall = sums.sum() / (weights.sum() + _PRIOR) + self._prior
        arms = (sums.sum(0) + _PRIOR * overall) / (weights.sum(0) + _PRIOR)
        return np.asarray((sums + _PRIOR * arms) / (weights + _PRIOR))

    def level_errors(self) -> tuple[Floats, Floats]:
        """Weight of all answers and standard error of the mean residual of every arm, each [arms]; infinite without
        answers."""
        weights, sums, squares = self._total.sum(1)
        deviations = squares - np.square(sums) / np.maximum(weights, 1e-9)
        variance = (np.maximum(deviations, 0.0) + _PRIOR_ANSWERS * _PRIOR_VARIANCE) / (weights + _PRIOR_ANSWERS)
        with np.errstate(divide="ignore"):
            return weights, np.sqrt(variance / weights)

    def reset_arm(self, arm: int) -> None:
        """Discard an arm's sums: its drafter, build or machine has changed."""
        for sums in (self._local, self._peers, self._total):
            sums[:, :, arm] = 0.0
        self.answers[arm] = 0.0

    def discount(self, factor: float) -> None:
        """Discount all sums by `factor`, after a change of traffic within clusters."""
        self._local *= factor
        self._total = self._local + self._peers

    def local_state(self) -> dict[str, Any]:
        """Sums for other routers, as JSON."""
        return dict(zip(("weights", "sums", "squares"), self._local.tolist(), strict=True))

    def merge(self, others: Iterable[dict[str, Any]]) -> None:
        """Replace the others' sums by these. Invalid states are skipped."""
        total = np.zeros_like(self._peers)
        for other in others:
            if (found := _parse_state(other)) is not None and found.shape == total.shape:
                total += found
        self._peers = total
        self._total = self._local + total


class FurtherCorrection(ResidualCorrection):
    """What answers show beyond another correction, for some of its requests."""

    def __init__(self, config: CorrectionConfig, of: ResidualCorrection) -> None:
        super().__init__(config, *of.shape)
        self._of = of

    def update(self, cluster: int, arm: int, residual: float, weight: float = 1.0) -> None:
        super().update(cluster, arm, residual - self._of.residual(cluster, arm), weight)


def _parse_state(state: Any) -> Floats | None:
    """Parse weights and sums of `ResidualCorrection.local_state`; None for anything else, such as other versions'."""
    if not isinstance(state, Mapping):
        return None
    try:
        weights, sums = np.asarray([state["weights"], state["sums"]], np.float64)
        own = np.square(sums) / np.maximum(weights, 1e-9) + weights * _PRIOR_VARIANCE  # of a router without squares
        made = np.stack([weights, sums, np.asarray(state.get("squares", own), np.float64)])
    except (KeyError, TypeError, ValueError):
        return None
    return made if np.isfinite(made).all() and (made[0] >= 0).all() else None
