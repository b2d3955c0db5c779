"""Corrects a policy's times from live answers: a factor for every arm and cluster.

Multiplicative weights (Hedge; Freund, Schapire 1997) over arms: an arm's predicted time per token is multiplied by
exp(shift), where shift is the discounted mean of log(TPOT observed / predicted) on that arm and cluster
(`draftpick.router.policies.clusters`). A cell with few answers is shrunk to its arm, an arm to the overall mean. One
answer moves a mean by at most about `most_step / memory`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from draftpick.router.config.sections import CorrectionConfig

Floats = npt.NDArray[np.float64]
_PRIOR = 1.5
"""Prior weight, in answers, of a cell's arm, and of an arm's overall mean."""


class ResidualCorrection:
    """Sums of residuals by cluster and arm.

    Several routers are summed: each shares its sums (`local_state`) and adds those of the others (`merge`).
    """

    def __init__(self, config: CorrectionConfig, num_clusters: int, num_arms: int) -> None:
        self._config = config
        self._local, self._peers = np.zeros((2, num_clusters, num_arms)), np.zeros((2, num_clusters, num_arms))
        self._total = np.zeros((2, num_clusters, num_arms))

    def update(self, cluster: int, arm: int, residual: float) -> None:
        """Add log(TPOT observed / predicted) of one answer."""
        so_far, step = self.residual(cluster, arm), self._config.most_step
        bounded = so_far + min(max(residual - so_far, -step), step)
        cell = self._local[:, cluster, arm]
        cell *= 1.0 - 1.0 / self._config.memory
        cell += (1.0, bounded)
        self._total[:, cluster, arm] = cell + self._peers[:, cluster, arm]

    def weight(self, cluster: int, arm: int) -> float:
        """Effective number of answers of an arm on a cluster."""
        return float(self._total[0, cluster, arm])

    def residual(self, cluster: int, arm: int) -> float:
        """The correction of one cell."""
        weights, sums = self._total
        overall = sums.sum() / (weights.sum() + _PRIOR)
        of_arm = (sums[:, arm].sum() + _PRIOR * overall) / (weights[:, arm].sum() + _PRIOR)
        return float((sums[cluster, arm] + _PRIOR * of_arm) / (weights[cluster, arm] + _PRIOR))

    def residuals(self) -> Floats:
        """The corrections of log TPOT of all cells, [bins, arms]."""
        weights, sums = self._total
        overall = sums.sum() / (weights.sum() + _PRIOR)
        arms = (sums.sum(0) + _PRIOR * overall) / (weights.sum(0) + _PRIOR)
        return np.asarray((sums + _PRIOR * arms) / (weights + _PRIOR))

    def reset_arm(self, arm: int) -> None:
        """Discard an arm's sums: its drafter, build or machine has changed."""
        for sums in (self._local, self._peers, self._total):
            sums[:, :, arm] = 0.0

    def discount(self, factor: float) -> None:
        """Discount all sums by `factor`, after a change of traffic within clusters."""
        self._local *= factor
        self._total = self._local + self._peers

    def local_state(self) -> dict[str, Any]:
        """Sums for other routers, as JSON."""
        return {"weights": self._local[0].tolist(), "sums": self._local[1].tolist()}

    def merge(self, others: Iterable[dict[str, Any]]) -> None:
        """Replace the others' sums by these. Invalid states are skipped."""
        total = np.zeros_like(self._peers)
        for other in others:
            if (found := _parse_state(other)) is not None and found.shape == total.shape:
                total += found
        self._peers = total
        self._total = self._local + total


def _parse_state(state: Any) -> Floats | None:
    """Parse weights and sums of `ResidualCorrection.local_state`; None for anything else, such as other versions'."""
    if not isinstance(state, Mapping):
        return None
    try:
        made = np.asarray([state["weights"], state["sums"]], np.float64)
    except (KeyError, TypeError, ValueError):
        return None
    return made if np.isfinite(made).all() and (made[0] >= 0).all() else None
