"""The seed paper's policy: softmax of a 3-layer perceptron over the context (arXiv 2408.08470), in numpy."""

from typing import Any

import numpy as np
import numpy.typing as npt

from router.errors import PolicyRefused
from router.policies.base import Policy, Probabilities, masked_softmax
from router.types import Context

LAYERS = 3


class MLPPolicy(Policy):
    """`softmax(W3 relu(W2 relu(W1 z + b1) + b2) + b3)` with `z = (context - mean) / scale`.

    Arrays: `mean`, `scale` of shape [d]; `w1` [d, h], `b1` [h], `w2` [h, h], `b2` [h], `w3` [h, arms], `b3` [arms];
    float32. With `greedy` all probability but `floor` per arm goes to the best eligible arm.
    """

    def __init__(
        self,
        id: str,
        arms: tuple[str, ...],
        featurizer: str,
        arrays: dict[str, npt.NDArray[np.float32]],
        *,
        greedy: bool = True,
        floor: float = 0.0,
    ) -> None:
        self.id, self.arms, self.featurizer = id, arms, featurizer
        self._greedy, self._floor = greedy, floor
        self._weights = _checked(arrays, len(arms))

    @classmethod
    def from_artifact(
        cls, id: str, manifest: dict[str, Any], arrays: dict[str, npt.NDArray[np.float32]]
    ) -> "MLPPolicy":
        """The policy of an artefact (see `router.policies.artifact`)."""
        arms, options = tuple(manifest["arms"]), manifest.get("options", {})
        greedy, floor = options.get("greedy", True), options.get("floor", 0.0)
        if not isinstance(greedy, bool) or not isinstance(floor, int | float) or not 0 <= floor <= 1 / len(arms):
            raise PolicyRefused(f"options {options} are wrong: greedy is true or false, floor from 0 to 1/{len(arms)}")
        return cls(id, arms, manifest["featurizer"], arrays, greedy=greedy, floor=floor)

    @property
    def dimension(self) -> int:
        """Length of the vectors it takes."""
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
            raise ValueError(f"policy {self.id} gave scores that are not finite")
        soft = masked_softmax(logits, eligible)
        if not self._greedy:
            return soft
        result = np.where(eligible, self._floor, 0.0)
        result[int(soft.argmax())] += 1.0 - result.sum()
        return result


def _checked(arrays: dict[str, npt.NDArray[np.float32]], num_arms: int) -> dict[str, npt.NDArray[np.float32]]:
    """`arrays` as they came, or `PolicyRefused` with the first shape that is wrong."""
    names = ["mean", "scale", *(f"{k}{i}" for i in range(1, LAYERS + 1) for k in "wb")]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise PolicyRefused(f"arrays are missing: {', '.join(missing)}")
    width = arrays["mean"].shape
    if len(width) != 1 or any(arrays[f"b{i}"].ndim != 1 for i in range(1, LAYERS + 1)):
        raise PolicyRefused("mean and b1 to b3 must have one dimension")
    sizes = [*width, *(arrays[f"b{i}"].shape[0] for i in range(1, LAYERS + 1))]
    expected: dict[str, tuple[int, ...]] = {"mean": width, "scale": width, f"b{LAYERS}": (num_arms,)}
    expected |= {f"w{i + 1}": (sizes[i], sizes[i + 1]) for i in range(LAYERS)}
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise PolicyRefused(f"array {name} has shape {arrays[name].shape}, expected {shape}")
    if not all(np.isfinite(arrays[name]).all() for name in names):
        raise PolicyRefused("arrays hold values that are not finite")
    if not (arrays["scale"] > 0).all():
        raise PolicyRefused("scale holds values that are not positive")
    return {name: np.asarray(arrays[name], np.float32) for name in names}
