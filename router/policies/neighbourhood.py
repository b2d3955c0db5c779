"""Where a request lies among the training requests: the nearest of their clusters, their effective number near it, and
how much a prediction leans on the prior.

The effective number is the sum of exp(-gamma d^2) over all training requests, d being their distance. Requests are
stored as prototypes (centres of k-means), each with its number of requests and their mean squared distance to it.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from draftpick.router.errors import PolicyRejected
from draftpick.router.policies.shapes import Arrays, Shapes, check_shapes
from draftpick.router.types import Vector

MAX_PROTOTYPES = 1024
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


class Neighbourhood:
    """Arrays: `prototypes` [n, d], scaled contexts; `prototype_counts` and `prototype_spreads` [n], requests of each
    and their mean squared distance to it; `kernel` [5].

    The kernel holds gamma; the number of neighbours at which a request is halfway between near and far; the weight of
    the prior far from everything; novelty, by how much the variance of a prediction far from everything exceeds that of
    a near one, relative to it; and the number of neighbours below which a request is far from anything known.
    """

    shapes: ClassVar[Shapes] = {
        "prototypes": ("prototypes", "d"),
        "prototype_counts": ("prototypes",),
        "prototype_spreads": ("prototypes",),
        "kernel": (5,),
    }

    def __init__(self, arrays: Arrays, dimension: int) -> None:
        sizes = check_shapes(arrays, self.shapes, d=dimension)
        if not 1 <= sizes["prototypes"] <= MAX_PROTOTYPES:
            raise PolicyRejected(f"array prototypes must hold 1 to {MAX_PROTOTYPES} contexts")
        gamma, self._halfway, self._shrinkage, self._novelty, self.min_neighbours = (float(x) for x in arrays["kernel"])
        if gamma <= 0 or self._halfway <= 0 or (arrays["kernel"] < 0).any() or self._shrinkage > 1:
            raise PolicyRejected(
                "array kernel must hold a positive gamma and half, a weight, and two numbers from 0 on"
            )
        if not (arrays["prototype_counts"] > 0).all() or not (arrays["prototype_spreads"] >= 0).all():
            raise PolicyRejected("prototypes must have positive counts and spreads that are not negative")
        points = np.asarray(arrays["prototypes"], np.float32)
        # -gamma |z - p|^2 = 2 gamma p z - gamma p p - gamma z z; all that does not depend on z is precomputed.
        self._gamma, self._scaled = gamma, 2 * gamma * points
        self._offsets = np.log(arrays["prototype_counts"]) - gamma * (
            np.square(points).sum(1) + arrays["prototype_spreads"]
        )

    def neighbours(self, z: Vector) -> float:
        """Effective number of training requests near a scaled context."""
        near = self._scaled @ z
        near += self._offsets
        near -= self._gamma * float(z @ z)
        return float(np.exp(near, out=near).sum())

    def doubt(self, z: Vector) -> tuple[float, float]:
        """Weight of the prior in a prediction, 0 to 1, and its standard deviation relative to one near many training
        requests, at least 1."""
        distance = self._halfway / (self._halfway + self.neighbours(z))
        return self._shrinkage * distance, math.sqrt(1.0 + self._novelty * distance)
