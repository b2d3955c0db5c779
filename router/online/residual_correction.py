"""What answers say of a policy's times, at once: a factor for every arm and kind of requests.

Multiplicative weights (Hedge; Freund, Schapire 1997) over arms: an arm's predicted time per token is multiplied by
exp(shift), where shift is the discounted mean of log(TPOT observed / predicted) on that arm and bin (a kind, as
`draftpick.router.policies.clusters` tells them apart). A cell of few answers leans on its arm, an arm on all answers.
One answer moves a mean by no more than about `most_step / memory`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from draftpick.router.config.sections import CorrectionConfig

Floats = npt.NDArray[np.float64]
_PRIOR = 1.5
"""Answers that a cell's arm, or an arm's mean over all, counts as."""


class ResidualCorrection:
    """Sums of residuals by bin and arm.

    Several routers add up: each tells its own sums (`own`) and takes those of the others (`take`).
    """

    def __init__(self, config: CorrectionConfig, num_clusters: int, num_arms: int) -> None:
        self._config = config
        self._local, self._peers = np.zeros((2, num_clusters, num_arms)), np.zeros((2, num_clusters, num_arms))
        self._total = np.zeros((2, num_clusters, num_arms))

    def update(self, cluster: int, arm: int, residual: float) -> None:
        """Take log(TPOT observed / predicted) of one answer into account."""
        so_far, step = self.residual(cluster, arm), self._config.most_step
        bounded = so_far + min(max(residual - so_far, -step), step)
        cell = self._local[:, cluster, arm]
        cell *= 1.0 - 1.0 / self._config.memory
        cell += (1.0, bounded)
        self._total[:, cluster, arm] = cell + self._peers[:, cluster, arm]

    def weight(self, cluster: int, arm: int) -> float:
        """How many answers count of an arm on a kind of requests."""
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
        """What was seen of an arm holds no more: its drafter, its build or its machine is another one."""
        for sums in (self._local, self._peers, self._total):
            sums[:, :, arm] = 0.0

    def discount(self, factor: float) -> None:
        """Let what was seen count less, `factor` of it: other requests come, even where they fall into the same
        bins."""
        self._local *= factor
        self._total = self._local + self._peers

    def local_state(self) -> dict[str, Any]:
        """What other routers may want to know, for JSON."""
        return {"weights": self._local[0].tolist(), "sums": self._local[1].tolist()}

    def merge(self, others: Iterable[dict[str, Any]]) -> None:
        """Count what other routers have seen, instead of what was taken before. What is no news is left out."""
        total = np.zeros_like(self._peers)
        for other in others:
            if (found := _parse_state(other)) is not None and found.shape == total.shape:
                total += found
        self._peers = total
        self._total = self._local + total


def _parse_state(state: Any) -> Floats | None:
    """Weights and sums, as `ResidualCorrection.local_state` gives them; None for anything else: other versions write
    there, too."""
    if not isinstance(state, Mapping):
        return None
    try:
        made = np.asarray([state["weights"], state["sums"]], np.float64)
    except (KeyError, TypeError, ValueError):
        return None
    return made if np.isfinite(made).all() and (made[0] >= 0).all() else None
