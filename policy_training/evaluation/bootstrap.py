"""The bootstrap: sampling variation of statistics over requests.

A resample draws n of n units with replacement. It is stored as counts per unit, so that sums are matrix products.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.workloads import GENERATED

MIN_BLOCKS = 5
"""Sources for a bootstrap by source."""
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Resamples of n units: `counts` [resamples, n], every row sums to n, but for `of_blocks`.

    `of_counts` and `of_places` sample the same distribution but consume the generator differently; reproducing a
    published figure needs its original constructor.
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

    @classmethod
    def of_blocks(cls, blocks: Sequence[str], resamples: int, rng: np.random.Generator) -> "Bootstrap":
        """Draw whole blocks, as many as there are: units of one block vary together. `blocks` [n]: of each unit."""
        names, number = np.unique(blocks, return_inverse=True)
        return cls(cls.of_counts(len(names), resamples, rng).counts[:, number.reshape(-1)])

    def sums(self, values: Floats) -> Floats:
        """Sums [resamples, ...] of values [n, ...] in each resample."""
        return np.asarray(self.counts @ values)

    def ratios(self, over: Floats, under: Floats) -> Floats:
        """sum(over) / sum(under) [resamples], of two values [n]."""
        return np.asarray(self.sums(over) / self.sums(under))


def source_blocks(sources: Sequence[str], n: int) -> list[str] | None:
    """Blocks of n requests for `Bootstrap.of_blocks`: requests of one source.

    Requests of unknown source and generated ones are blocks of their own.

    None where fewer than `MIN_BLOCKS` blocks would pretend a certainty that they do not have.
    """
    blocks = [f"\0{i}" if source in ("", GENERATED) else source for i, source in enumerate(sources or ("",) * n)]
    return blocks if len(set(blocks)) >= MIN_BLOCKS else None


def bounds(resampled: Floats, alpha: float = 0.05, method: Literal["linear", "lower"] = "linear") -> Floats:
    """Bounds [2, ...] of the 1 - `alpha` interval of resampled statistics [resamples, ...]."""
    return np.asarray(np.quantile(resampled, [alpha / 2, 1.0 - alpha / 2], axis=0, method=method))
