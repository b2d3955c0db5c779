"""Clusters of contexts: the nearest centre, and whether the context is within its radius."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
_FAR = 0.95
_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Clusters:
    """Centres [k, d] of a policy's training requests, scaled as the policy scales contexts.

    `squared_norms` [k]: squared norms of the centres. `radius` [k]: 95th percentile of the squared distance of a
    cluster's requests to its centre.
    """

    centres: Floats
    squared_norms: Floats
    radius: list[float]

    @classmethod
    def from_points(cls, points: Floats, k: int = 24) -> "Clusters":
        """K-means from a farthest-first start (Gonzalez 1985): deterministic."""
        centres = points[[0]]
        for _ in range(min(k, len(points)) - 1):
            centres = np.concatenate([centres, points[[_distances(points, centres).min(1).argmax()]]])
        for _ in range(_ROUNDS):
            nearest = _distances(points, centres).argmin(1)
            centres = np.stack(
                [points[nearest == i].mean(0) if (nearest == i).any() else c for i, c in enumerate(centres)]
            )
        distances = _distances(points, centres)
        nearest, least = distances.argmin(1), distances.min(1)
        most = np.quantile(least, _FAR)
        own = [least[nearest == i] for i in range(len(centres))]
        far = np.asarray([np.quantile(one, _FAR) if len(one) else most for one in own])
        return cls(centres, np.square(centres).sum(1), far.tolist())

    def __len__(self) -> int:
        return len(self.centres)

    def assign(self, z: Floats) -> int:
        """Index of the nearest centre, plus the number of centres if `z` is outside its radius."""
        distances = (self.squared_norms - 2.0 * (self.centres @ z)).tolist()
        nearest = min(range(len(distances)), key=distances.__getitem__)
        return nearest + len(self.centres) * int(distances[nearest] + float(z @ z) > self.radius[nearest])


def _distances(points: Floats, centres: Floats) -> Floats:
    """Squared distances [n, k]."""
    squares = np.square(points).sum(1)[:, None] + np.square(centres).sum(1)
    return np.asarray(np.maximum(squares - 2.0 * points @ centres.T, 0.0))
