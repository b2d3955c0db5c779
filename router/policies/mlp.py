"""The seed paper's policy: softmax of a 3-layer perceptron over the context (arXiv 2408.08470), in numpy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from draftpick.router.errors import PolicyRejected
from draftpick.router.policies.base import Policy, Probabilities, masked_softmax, one_hot_with_floor
from draftpick.router.policies.shapes import Arrays, Shapes, check_shapes
from draftpick.router.types import Context

LAYERS = 3
_SHAPES: Shapes = {
    **{"mean": ("d",), "scale": ("d",)},
    **{"w1": ("d", "h1"), "b1": ("h1",), "w2": ("h1", "h2"), "b2": ("h2",), "w3": ("h2", "arms"), "b3": ("arms",)},
}


class MLPPolicy(Policy):
    """`softmax(W3 relu(W2 relu(W1 z + b1) + b2) + b3)` with `z = (context - mean) / scale`.

    Arrays: `mean`, `scale` of shape [d]; `w1` [d, h], `b1` [h], `w2` [h, h], `b2` [h], `w3` [h, arms], `b3` [arms];
    float32. With `greedy` the best eligible arm gets all probability except `floor` per arm.
    """

    def __init__(
        self,
        id: str,
        arms: tuple[str, ...],
        featurizer: str,
        arrays: Arrays,
        *,
        greedy: bool = True,
        floor: float = 0.0,
    ) -> None:
        self.id, self.arms, self.featurizer = id, arms, featurizer
        self._greedy, self._floor = greedy, floor
        check_shapes(arrays, _SHAPES, arms=len(arms))
        if not (arrays["scale"] > 0).all():
            raise PolicyRejected("array scale contains values that are not positive")
        self._weights = arrays

    @classmethod
    def from_artifact(cls, id: str, manifest: dict[str, Any], arrays: Arrays) -> "MLPPolicy":
        """The policy of an artefact (see `draftpick.router.policies.artifact`)."""
        arms, options = tuple(manifest["arms"]), manifest.get("options", {})
        greedy, floor = options.get("greedy", True), options.get("floor", 0.0)
        if not isinstance(greedy, bool) or not isinstance(floor, int | float) or not 0 <= floor <= 1 / len(arms):
            raise PolicyRejected(f"options {options} are wrong: greedy is true or false, floor from 0 to 1/{len(arms)}")
        return cls(id, arms, manifest["featurizer"], arrays, greedy=greedy, floor=floor)

    @classmethod
    def shapes(cls, options: Mapping[str, Any]) -> Shapes:
        return _SHAPES

    @property
    def dimension(self) -> int:
        """Dimension of its contexts."""
        return len(self._weights["mean"])

    def logits(self, context: Context) -> Probabilities:
        """Scores of all arms, shape [arms]."""
        w = self._weights
        x = (context.vector - w["mean"]) / w["scale"]
        for i in range(1, LAYERS):
            x = np.maximum(x @ w[f"w{i}"] + w[f"b{i}"], 0.0)
        return np.asarray(x @ w[f"w{LAYERS}"] + w[f"b{LAYERS}"], np.float64)

    def probabilities(self, context: Context | None, eligible: npt.NDArray[np.bool_]) -> Probabilities:
        if context is None:
            raise ValueError(f"policy {self.id} needs a context")
        logits = self.logits(context)
        if not np.isfinite(logits).all():
            raise ValueError(f"policy {self.id} computed scores that are not finite")
        soft = masked_softmax(logits, eligible)
        if not self._greedy:
            return soft
        return one_hot_with_floor(int(soft.argmax()), eligible, self._floor)
