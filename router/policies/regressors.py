"""Regressors of log tau in numpy: mean and standard deviation for every arm. A new one is a class and a line.

Each is built from the arrays of an artefact and checks them (`PolicyRejected`). Their input is
`z = (context - mean) / scale`.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from draftpick.engines.config import did_you_mean
from draftpick.router.errors import PolicyRejected
from draftpick.router.policies.shapes import Arrays, Shapes, check_shapes
from draftpick.router.types import Vector

Floats = npt.NDArray[np.float32]


class Regressor(ABC):
    """Predicts log tau of `arms` arms; `sampled`: whether the request samples, which may reverse the arms' order."""

    shapes: ClassVar[Shapes]

    def __init__(self, arrays: Arrays, arms: int) -> None:
        self._sizes = check_shapes(arrays, {**_SCALING, **self.shapes}, arms=arms)
        if not (arrays["scale"] > 0).all():
            raise PolicyRejected("array scale contains values that are not positive")
        self._arrays = arrays

    @property
    def dimension(self) -> int:
        """Dimension of its contexts."""
        return self._sizes["d"]

    def __call__(self, z: Vector, sampled: bool) -> tuple[Floats, Floats]:
        """Mean and standard deviation of log tau, each [arms], for a scaled context."""
        return self.mean(z, int(sampled)), self._arrays["sigma"][int(sampled)]

    def scaled(self, vector: Vector) -> Floats:
        """The scaled context [d]."""
        return np.asarray((vector - self._arrays["mean"]) / self._arrays["scale"])

    @property
    def requests(self) -> Floats | None:
        """Scaled contexts [n, d] of its training requests; None: it keeps none."""
        return None

    @abstractmethod
    def mean(self, z: Vector, sampled: int) -> Floats:
        """Mean of log tau [arms]. `sampled`: 0 or 1."""


_SCALING: Shapes = {"mean": ("d",), "scale": ("d",), "sigma": (2, "arms")}


class Linear(Regressor):
    """`z w[half] + b[half]`."""

    shapes: ClassVar[Shapes] = {"w": (2, "d", "arms"), "b": (2, "arms")}

    def mean(self, z: Vector, sampled: int) -> Floats:
        return np.asarray(z @ self._arrays["w"][sampled] + self._arrays["b"][sampled])


class Centroids(Regressor):
    """The mean of the nearest cluster: `values[half, argmin |z - centroid|]`."""

    shapes: ClassVar[Shapes] = {"centroids": ("clusters", "d"), "values": (2, "clusters", "arms")}

    def mean(self, z: Vector, sampled: int) -> Floats:
        distances = np.square(self._arrays["centroids"] - z).sum(1)
        return np.asarray(self._arrays["values"][sampled, distances.argmin()])


class Neighbours(Regressor):
    """The mean of the `neighbours[0]` nearest requests of the same half (all, if it has fewer)."""

    shapes: ClassVar[Shapes] = {"points": ("n", "d"), "values": ("n", "arms"), "sampled": ("n",), "neighbours": (1,)}

    def __init__(self, arrays: Arrays, arms: int) -> None:
        super().__init__(arrays, arms)
        if not arrays["neighbours"][0] >= 1:
            raise PolicyRejected("array neighbours must contain a number, 1 or more")
        rows = [arrays["sampled"] == half for half in (0, 1)]
        if not all(mask.any() for mask in rows):
            rows = [np.ones(len(arrays["sampled"]), bool)] * 2
        self._points = [arrays["points"][mask] for mask in rows]
        self._values = [arrays["values"][mask] for mask in rows]
        self._squares = [np.square(points).sum(1) for points in self._points]

    @property
    def requests(self) -> Floats | None:
        return self._arrays["points"]

    def mean(self, z: Vector, sampled: int) -> Floats:
        distances = self._squares[sampled] - 2 * (self._points[sampled] @ z)
        k = min(int(self._arrays["neighbours"][0]), len(distances))
        near = np.argpartition(distances, k - 1)[:k]
        return np.asarray(self._values[sampled][near].mean(0))


_MIN_STEPS = 0.02  # per token: no drafter yields 50 tokens per step


class Kernel(Regressor):
    """Steps per token, 1 / tau: `base + exp(-gamma |x - points|^2) weights`.

    x is z followed by half * `apart`; `shape`: gamma, apart.
    """

    shapes: ClassVar[Shapes] = {"points": ("n", "inputs"), "weights": ("n", "arms"), "base": ("arms",), "shape": (2,)}

    def __init__(self, arrays: Arrays, arms: int) -> None:
        super().__init__(arrays, arms)
        if self._sizes["inputs"] != self.dimension + 1:
            raise PolicyRejected(f"array points has {self._sizes['inputs']} inputs, expected {self.dimension + 1}")
        self._gamma, self._sampled_offset = (float(value) for value in arrays["shape"])
        if self._gamma <= 0:
            raise PolicyRejected("array shape contains a gamma that is not positive")
        # -gamma |x - p|^2 = 2 gamma p x - gamma p p - gamma x x: the first two are precomputed here.
        self._scaled = 2 * self._gamma * arrays["points"]
        self._squares = self._gamma * np.square(arrays["points"]).sum(1)

    @property
    def requests(self) -> Floats | None:
        return self._arrays["points"][:, :-1]

    def mean(self, z: Vector, sampled: int) -> Floats:
        return np.asarray(-np.log(self._steps(z, sampled).clip(_MIN_STEPS, 1.0)))

    def _steps(self, z: Vector, sampled: int) -> Floats:
        x = np.empty(len(z) + 1, np.float32)
        x[:-1], x[-1] = z, self._sampled_offset * sampled
        near = self._scaled @ x
        near -= self._squares
        near -= self._gamma * (x @ x)
        return np.asarray(np.exp(near, out=near) @ self._arrays["weights"] + self._arrays["base"])


class NoveltyMargin:
    """Margin of a request's distances to the training domains, from `centres` [domains, centres, e]."""

    def __init__(self, centres: Floats) -> None:
        self._shape, self._embedded = centres.shape[:2], centres.shape[2]
        self._centres = centres.reshape(-1, self._embedded)
        self._squares = 0.5 * np.square(self._centres).sum(1)

    def margins(self, z: Vector) -> list[float]:
        """By domain [domains]: half of (squared distance to the nearest other domain - squared distance to itself)."""
        near = (self._centres @ z[: self._embedded] - self._squares).reshape(self._shape).max(1).tolist()
        second, first = sorted(near)[-2:]
        return [one - (second if one == first else first) for one in near]

    def features(self, z: Vector, sampled: int) -> Floats:
        """[domains, 3]: the margin, its positive part, and the margin times `sampled`."""
        return np.asarray([[one, max(one, 0.0), sampled * one] for one in self.margins(z)], np.float32)


class DomainKernel(Kernel):
    """`Kernel`, plus, for the arms `domain_arms`, the margins of their training domains: `NoveltyMargin.features` times
    `margin_weights`."""

    shapes: ClassVar[Shapes] = {
        **Kernel.shapes,
        "domain_centres": ("domains", "centres", "embedded"),
        "domain_arms": ("domains",),
        "margin_weights": (3,),
    }

    def __init__(self, arrays: Arrays, arms: int) -> None:
        super().__init__(arrays, arms)
        at = arrays["domain_arms"].astype(np.int64)
        if len(at) < 2 or not ((at >= 0) & (at < arms)).all():
            raise PolicyRejected("array domain_arms must name two arms or more, by index")
        if self._sizes["embedded"] > self.dimension:
            raise PolicyRejected(f"array domain_centres has dimension {self._sizes['embedded']}, more than contexts")
        self._domain_arms = at.tolist()
        self._novelty_margin = NoveltyMargin(arrays["domain_centres"])
        self._margin_weights: list[float] = arrays["margin_weights"].tolist()

    def _steps(self, z: Vector, sampled: int) -> Floats:
        steps = super()._steps(z, sampled)
        margin, positive, sampled_margin = self._margin_weights
        for arm, one in zip(self._domain_arms, self._novelty_margin.margins(z), strict=True):
            steps[arm] += (margin + sampled * sampled_margin) * one + positive * max(one, 0.0)
        return steps


class Trees(Regressor):
    """Sums of regression trees, one ensemble per arm. In node i: `left[i]` if `z[feature[i]] <= threshold[i]`.

    `feature` is -1 at a leaf, whose children are itself; `sampled` is feature d.
    """

    shapes: ClassVar[Shapes] = {
        **dict.fromkeys(("feature", "threshold", "left", "right", "value"), ("arms", "trees", "nodes")),
        "base": ("arms",),
        "depth": (1,),
    }

    def __init__(self, arrays: Arrays, arms: int) -> None:
        super().__init__(arrays, arms)
        nodes = self._sizes["nodes"]
        integers = {name: arrays[name].astype(np.int64) for name in ("feature", "left", "right")}
        if not all(((integers[name] >= 0) & (integers[name] < nodes)).all() for name in ("left", "right")):
            raise PolicyRejected("a tree refers to a missing node")
        if not ((integers["feature"] >= -1) & (integers["feature"] <= self.dimension)).all():
            raise PolicyRejected("a tree refers to a missing feature")
        self._feature, self._left, self._right = (integers[name] for name in ("feature", "left", "right"))

    def mean(self, z: Vector, sampled: int) -> Floats:
        x = np.append(z, sampled)
        arm, tree = np.ogrid[: self._feature.shape[0], : self._feature.shape[1]]
        node = np.zeros(self._feature.shape[:2], np.int64)
        for _ in range(int(self._arrays["depth"][0])):
            feature = self._feature[arm, tree, node]
            goes_left = x[feature] <= self._arrays["threshold"][arm, tree, node]
            below = np.where(goes_left, self._left[arm, tree, node], self._right[arm, tree, node])
            node = np.where(feature < 0, node, below)
        return np.asarray(self._arrays["base"] + self._arrays["value"][arm, tree, node].sum(1))


class Perceptrons(Regressor):
    """Ensemble of perceptrons with one hidden layer; half is their last input. Disagreement adds to the deviation."""

    shapes: ClassVar[Shapes] = {
        "w1": ("members", "inputs", "hidden"),
        "b1": ("members", "hidden"),
        "w2": ("members", "hidden", "arms"),
        "b2": ("members", "arms"),
    }

    def __init__(self, arrays: Arrays, arms: int) -> None:
        super().__init__(arrays, arms)
        if self._sizes["inputs"] != self.dimension + 1:
            raise PolicyRejected(f"array w1 takes {self._sizes['inputs']} inputs, expected {self.dimension + 1}")

    def __call__(self, z: Vector, sampled: bool) -> tuple[Floats, Floats]:
        each = self._members(z, int(sampled))
        noise = self._arrays["sigma"][int(sampled)]
        return each.mean(0), np.sqrt(np.square(noise) + each.var(0))

    def mean(self, z: Vector, sampled: int) -> Floats:
        return np.asarray(self._members(z, sampled).mean(0))

    def _members(self, z: Vector, sampled: int) -> Floats:
        """Predictions of the members, [members, arms]."""
        w = self._arrays
        x = np.append(z, np.float32(sampled)).astype(np.float32)
        hidden = np.maximum(x @ w["w1"] + w["b1"], 0.0)
        return np.asarray((hidden[:, None] @ w["w2"])[:, 0] + w["b2"])


_REGRESSORS: dict[str, type[Regressor]] = {
    "linear": Linear,
    "centroids": Centroids,
    "neighbours": Neighbours,
    "kernel": Kernel,
    "domain_kernel": DomainKernel,
    "trees": Trees,
    "perceptrons": Perceptrons,
}


def shapes(kind: Any) -> Shapes:
    """Return the shapes of a regressor's arrays; none of an unknown one."""
    return {**_SCALING, **_REGRESSORS[kind].shapes} if kind in _REGRESSORS else {}


def make(kind: Any, arrays: Arrays, arms: int) -> Regressor:
    """Build the regressor of an artefact. Raises `PolicyRejected`."""
    if kind not in _REGRESSORS:
        raise PolicyRejected(
            f"unknown regressor {kind!r} ({did_you_mean(str(kind), _REGRESSORS)}known: {', '.join(_REGRESSORS)})"
        )
    return _REGRESSORS[kind](arrays, arms)
