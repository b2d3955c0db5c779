"""The one interface of all policies: a context and the eligible arms give a distribution over these arms."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, compress

import numpy as np
import numpy.typing as npt

from router.types import Context, Decision

Probabilities = npt.NDArray[np.float64]


class Policy(ABC):
    """Chooses among `arms`. Subclasses give probabilities; this class samples, so a propensity is never missing."""

    id: str
    arms: tuple[str, ...]
    featurizer: str | None = None
    """Id of the featurizer whose contexts it needs; None: it needs no context."""

    @abstractmethod
    def probabilities(self, context: Context | None, eligible: npt.NDArray[np.bool_]) -> Probabilities:
        """Distribution over `arms`, shape `[len(arms)]`: 0 where not eligible, sum 1. At least one arm is eligible."""

    def decide(
        self, context: Context | None, eligible: Sequence[str], rng: np.random.Generator, explore: float = 0.0
    ) -> Decision:
        """Sample an arm among `eligible` (names, at least one); with probability `explore` from all of them alike."""
        may = [arm in eligible for arm in self.arms]
        mask = np.asarray(may)
        shares: list[float] = self.probabilities(context, mask).tolist()
        if not (sum(compress(shares, may)) > 0 and min(shares) >= 0 and math.isfinite(sum(shares))):
            raise ValueError(f"policy {self.id} gave no distribution: {shares}")
        if explore:
            alike = explore / sum(may)
            shares = [(1 - explore) * share + alike * one for share, one in zip(shares, may, strict=True)]
        chosen = _drawn(shares, rng.random())
        return Decision(self.arms[chosen], shares[chosen], dict(zip(self.arms, shares, strict=True)), self.id)


def _drawn(shares: Sequence[float], at: float) -> int:
    """The index into which `at` in [0, 1) falls, by these shares; never one of share 0."""
    sums = list(accumulate(shares))
    chosen = bisect_right(sums, at * sums[-1])
    # Rounding may lead past the end.
    return chosen if chosen < len(shares) else max(i for i, share in enumerate(shares) if share)


def masked_softmax(logits: Probabilities, eligible: npt.NDArray[np.bool_]) -> Probabilities:
    """Softmax over the eligible arms, exact 0 elsewhere. Shape `[arms]`."""
    weights = np.exp(np.where(eligible, logits - logits[eligible].max(), -np.inf))
    return np.asarray(weights / weights.sum())


def onto(arm: int, eligible: npt.NDArray[np.bool_], floor: float) -> Probabilities:
    """All probability to one arm (an index), but `floor` to each other eligible one. Shape `[arms]`."""
    result = np.multiply(eligible, floor, dtype=np.float64)
    result[arm] += 1.0 - result.sum() if floor else 1.0
    return result
