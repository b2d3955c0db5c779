"""The bootstrap: sampling variation of statistics over requests.

A resample draws n of n units with replacement. It is stored as counts per unit, so that sums are matrix products.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Resamples of n units: `counts` [resamples, n], every row sums to n.

    Both constructors sample the same distribution but consume the generator differently; reproducing a published figure
    needs its original constructor.
    """

    counts: Floats

    @classmethod
    def of_counts(cls, n: int, resamples: int, rng: np.random.Generator) -> "Bootstrap":
        """Draw the counts directly: the faster one."""
        return cls(rng.multinomial(n, np.full(n, 1 / n), resamples).astype(np.float64))

    @classmethod
    def of_places(cls, n: int, resamples: int, rng: np.random.Generator) -> "Bootstrap":
        """Draw the indices [resamples, n] of the units, one by one."""
        places = rng.integers(0, n, (resamples, n)) + n * np.arange(resamples)[:, None]
        counts = np.bincount(places.ravel(), minlength=n * resamples)
        return cls(counts.reshape(resamples, n).astype(np.float64))

    def sums(self, values: Floats) -> Floats:
        """Sums [resamples, ...] of values [n, ...] in each resample."""
        return np.asarray(self.counts @ values)

    def ratios(self, over: Floats, under: Floats) -> Floats:
        """sum(over) / sum(under) [resamples], of two values [n]."""
        return np.asarray(self.sums(over) / self.sums(under))


def bounds(resampled: Floats, alpha: float = 0.05, method: Literal["linear", "lower"] = "linear") -> Floats:
    """Bounds [2, ...] of the 1 - `alpha` interval of resampled statistics [resamples, ...]."""
    return np.asarray(np.quantile(resampled, [alpha / 2, 1.0 - alpha / 2], axis=0, method=method))
