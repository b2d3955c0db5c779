"""Policies that ignore the context: one fixed arm, and the uniform distribution."""

from typing import Any

import numpy as np
import numpy.typing as npt

from draftpick.engines.arms import default_arm, drafter_of
from draftpick.router.errors import PolicyRejected
from draftpick.router.policies.base import Policy, Probabilities
from draftpick.router.policies.shapes import Arrays
from draftpick.router.types import Context


class FixedPolicy(Policy):
    """Always one arm; uniform over the others if that arm is not eligible."""

    def __init__(self, arms: tuple[str, ...], arm: str) -> None:
        """`arm`: an arm, or an engine, of whose drafters a pool chooses itself."""
        self.id, self.arms = f"fixed:{arm}", arms
        self._index, self.orders_drafters = arms.index(default_arm(arm, arms)), drafter_of(arm) is not None

    @classmethod
    def from_artifact(cls, id: str, manifest: dict[str, Any], arrays: Arrays) -> "FixedPolicy":
        """The policy of the arm in the option `arm`. Raises `PolicyRejected`."""
        arm = manifest.get("options", {}).get("arm")
        if arm not in manifest["arms"]:
            raise PolicyRejected(f"option arm names {arm!r}, which is not among the arms {manifest['arms']}")
        return cls(tuple(manifest["arms"]), arm)

    def probabilities(self, context: Context | None, eligible: npt.NDArray[np.bool_]) -> Probabilities:
        if eligible[self._index]:
            return np.asarray(np.eye(len(self.arms))[self._index])
        return np.asarray(eligible / eligible.sum())


class UniformPolicy(Policy):
    """Uniform over the eligible arms; used to collect data."""

    orders_drafters = True

    def __init__(self, arms: tuple[str, ...]) -> None:
        self.id, self.arms = "uniform", arms

    @classmethod
    def from_artifact(cls, id: str, manifest: dict[str, Any], arrays: Arrays) -> "UniformPolicy":
        """The policy of all arms in the manifest."""
        return cls(tuple(manifest["arms"]))

    def probabilities(self, context: Context | None, eligible: npt.NDArray[np.bool_]) -> Probabilities:
        return np.asarray(eligible / eligible.sum())


NAMES = frozenset({"fixed", "uniform", "embedded"})
"""Policies without a folder."""
