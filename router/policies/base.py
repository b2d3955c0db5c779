"""The one interface of all policies: a context and the eligible arms give a distribution over these arms."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

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
        mask = np.fromiter((arm in eligible for arm in self.arms), bool, len(self.arms))
        probabilities = self.probabilities(context, mask)
        if not (np.isfinite(probabilities).all() and (probabilities >= 0).all() and probabilities[mask].sum() > 0):
            raise ValueError(f"policy {self.id} gave no distribution: {probabilities}")
        if explore:
            probabilities = (1 - explore) * probabilities + explore * mask / mask.sum()
        chosen = int(np.searchsorted(np.cumsum(probabilities), rng.random() * probabilities.sum(), side="right"))
        chosen = min(chosen, int(np.flatnonzero(probabilities)[-1]))
        return Decision(
            self.arms[chosen],
            float(probabilities[chosen]),
            dict(zip(self.arms, probabilities.tolist(), strict=True)),
            self.id,
        )


def masked_softmax(logits: Probabilities, eligible: npt.NDArray[np.bool_]) -> Probabilities:
    """Softmax over the eligible arms, exact 0 elsewhere. Shape `[arms]`."""
    weights = np.exp(np.where(eligible, logits - logits[eligible].max(), -np.inf))
    return np.asarray(weights / weights.sum())


def onto(arm: int, eligible: npt.NDArray[np.bool_], floor: float) -> Probabilities:
    """All probability to one arm (an index), but `floor` to each other eligible one. Shape `[arms]`."""
    result = np.where(eligible, floor, 0.0)
    result[arm] += 1.0 - result.sum()
    return result
