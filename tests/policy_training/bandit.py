"""A synthetic bandit: in each cluster of contexts one arm is known to be the fastest."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policy_training.dataset import Matrix

ARMS = ("plain", "ngram", "suffix", "math")
SECONDS = np.asarray(
    [
        [1.0, 0.5, 1.2, 1.5],
        [1.0, 1.4, 0.6, 1.2],
        [1.0, 1.3, 1.3, 0.4],
        [1.0, 1.5, 1.6, 1.4],
    ]
)
"""Mean seconds by cluster and arm; the fastest arm of cluster i is arm (i + 1) % 4."""
BEST = SECONDS.argmin(1)
_DIMENSION = 8


@dataclass(frozen=True, slots=True)
class Bandit:
    """Contexts [n, 8], times [n, 4] and clusters [n]. Prompts differ in length, and so in time under every arm."""

    contexts: npt.NDArray[np.float32]
    time_s: npt.NDArray[np.float64]
    clusters: npt.NDArray[np.int64]

    @classmethod
    def draw(cls, n: int, seed: int) -> "Bandit":
        rng = np.random.default_rng(seed)
        clusters = rng.integers(0, len(SECONDS), n)
        contexts = 3 * np.eye(len(SECONDS), _DIMENSION)[clusters] + rng.normal(0, 0.5, (n, _DIMENSION))
        return cls(contexts.astype(np.float32), SECONDS[clusters] * rng.lognormal(0, 0.3, (n, 1)), clusters)

    def __len__(self) -> int:
        return len(self.clusters)

    def share_of_possible(self, chosen: npt.NDArray[np.int64]) -> float:
        """Seconds that the chosen arms save against the first arm, over those that the best arms save."""
        saved = self.time_s[:, [0]] - self.time_s
        return float(saved[np.arange(len(self)), chosen].sum() / saved.max(1).sum())

    def matrix(self) -> Matrix:
        """The same as the dataset that learners and evaluation read; a cluster is a kind."""
        return Matrix(
            prompt_ids=tuple(f"p{i}" for i in range(len(self))),
            kinds=tuple(f"cluster-{c}" for c in self.clusters),
            arms=ARMS,
            time_s=self.time_s,
            acceptance_length=np.ones_like(self.time_s),
            acceptance_rate=np.full_like(self.time_s, np.nan),
            output_tokens=np.full_like(self.time_s, 32),
            temperatures=np.zeros(len(self)),
            dropped={},
            contexts=self.contexts,
        )
