"""Policies by name. `load` returns the configured policy, checked against this fleet."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from draftpick.engines.config import EMBEDDED, did_you_mean
from draftpick.router.errors import PolicyRejected
from draftpick.router.policies import artifact
from draftpick.router.policies.base import Policy
from draftpick.router.policies.baselines import NAMES, FixedPolicy, UniformPolicy
from draftpick.router.policies.pool_arms import serve_arms
from draftpick.router.policies.shapes import Arrays

SHIPPED = Path(__file__).parent / "shipped"
"""The policy `embedded`, trained on measurements of the embedded fleet."""

# kind of an artefact -> location of its class; a new kind is a file and a line
_POLICY_TYPES = {
    "calibrated": "draftpick.router.policies.calibrated:CalibratedPolicy",
    "fixed": "draftpick.router.policies.baselines:FixedPolicy",
    "mlp": "draftpick.router.policies.mlp:MLPPolicy",
    "tau_cost": "draftpick.router.policies.tau_cost:TauCostPolicy",
    "uniform": "draftpick.router.policies.baselines:UniformPolicy",
}


def load(name: str, arms: tuple[str, ...], default_arm: str) -> Policy:
    """The policy called `name`: `fixed`, `uniform`, `embedded`, or the folder of an artefact.

    Raises `PolicyRejected` if it is not readable or lacks an arm of the fleet.
    """
    if name == "fixed":
        return FixedPolicy(arms, default_arm)
    if name == "uniform":
        return UniformPolicy(arms)
    return check_arms(read(SHIPPED if name == EMBEDDED else Path(name), arms), arms)


def read(path: Path, arms: Sequence[str] = ()) -> Policy:
    """Read the policy in an artefact's folder, to serve these arms if it knows their drafters. Raises
    `PolicyRejected`."""
    return make(*artifact.read(path), arms)


def make(manifest: dict[str, Any], arrays: Arrays, arms: Sequence[str] = ()) -> Policy:
    """Build the policy of a manifest and its arrays, as `read` does from a folder. Raises `PolicyRejected`."""
    kind = manifest["kind"]
    if kind not in _POLICY_TYPES:
        raise PolicyRejected(
            f"unknown kind of policy {kind!r} ({did_you_mean(kind, _POLICY_TYPES)}known: {', '.join(_POLICY_TYPES)})"
        )
    module, name = _POLICY_TYPES[kind].split(":")
    cls: Any = getattr(import_module(module), name)
    try:
        if arms:
            manifest, arrays = serve_arms(manifest, arrays, arms, cls.shapes(manifest.get("options", {})))
        policy: Policy = cls.from_artifact(f"{kind}:{manifest['arrays_sha256'][:8]}", manifest, arrays)
    except PolicyRejected:
        raise
    except Exception as error:  # options and arrays may be wrong in any way, and callers handle one error
        raise PolicyRejected(f"a policy of kind {kind!r} cannot be made: {type(error).__name__}: {error}") from error
    return policy


def check_arms(policy: Policy, arms: tuple[str, ...]) -> Policy:
    """Return `policy`, or raise `PolicyRejected` if it lacks an arm of the fleet.

    Additional arms are allowed: an arm without a replica is never eligible.
    """
    if not set(policy.arms) >= set(arms):
        raise PolicyRejected(
            f"policy {policy.id} was made for the engines {list(policy.arms)}, this fleet has {list(arms)}"
        )
    return policy


def check_features(policy: Policy, featurizer: str | None) -> Policy:
    """Return `policy`, or raise `PolicyRejected` if the router does not compute the contexts that it needs."""
    if policy.featurizer is not None and policy.featurizer != featurizer:
        raise PolicyRejected(
            f"policy {policy.id} needs the features {policy.featurizer!r}, the router makes {featurizer!r}"
        )
    return policy


__all__ = ["NAMES", "SHIPPED", "check_arms", "check_features", "load", "make", "read"]
