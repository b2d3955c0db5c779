"""Policies that look at nothing: one fixed arm, and every arm alike."""

from typing import Any

import numpy as np
import numpy.typing as npt

from draftpick.router.errors import PolicyRejected
from draftpick.router.policies.base import Policy, Probabilities
from draftpick.router.policies.shapes import Arrays
from draftpick.router.types import Context


class FixedPolicy(Policy):
    """Always one arm; when that arm is not eligible, every other arm alike."""

    def __init__(self, arms: tuple[str, ...], arm: str) -> None:
        self.id, self.arms = f"fixed:{arm}", arms
        self._index = arms.index(arm)

    @classmethod
    def from_artifact(cls, id: str, manifest: dict[str, Any], arrays: Arrays) -> "FixedPolicy":
        """The arm that the option `arm` names. Raises `PolicyRejected`."""
        arm = manifest.get("options", {}).get("arm")
        if arm not in manifest["arms"]:
            raise PolicyRejected(f"option arm names {arm!r}, which is no arm of {manifest['arms']}")
        return cls(tuple(manifest["arms"]), arm)

    def probabilities(self, context: Context | None, eligible: npt.NDArray[np.bool_]) -> Probabilities:
        if eligible[self._index]:
            return np.asarray(np.eye(len(self.arms))[self._index])
        return np.asarray(eligible / eligible.sum())


class UniformPolicy(Policy):
    """Every eligible arm alike: the policy to collect with."""

    def __init__(self, arms: tuple[str, ...]) -> None:
        self.id, self.arms = "uniform", arms

    @classmethod
    def from_artifact(cls, id: str, manifest: dict[str, Any], arrays: Arrays) -> "UniformPolicy":
        """All arms of the manifest."""
        return cls(tuple(manifest["arms"]))

    def probabilities(self, context: Context | None, eligible: npt.NDArray[np.bool_]) -> Probabilities:
        return np.asarray(eligible / eligible.sum())


NAMES = frozenset({"fixed", "uniform", "embedded"})
"""Policies that are no folder."""
