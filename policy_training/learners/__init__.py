"""Learners by name: from a matrix of times to the parts of a policy artefact. To add one: one file, one line."""

from importlib import import_module
from typing import Any

from draftpick.engines.config import did_you_mean
from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.learners.base import Learner

_LEARNERS = {
    "best_fixed": "best_fixed:BestFixed",
    "domain_lookup": "domain_lookup:DomainLookup",
    "knn": "knn:Knn",
    "kernel": "kernel:KernelRegression",
    "ridge": "ridge:RidgeRegression",
    "boosting": "boosting:Boosting",
    "mlp_regression": "mlp_regression:MLPRegression",
    "soft_label": "soft_label:SoftLabel",
    "exact": "policy_gradient:ExactGradient",
    "reinforce": "policy_gradient:Reinforce",
    "tau_cost": "tau_cost:TauCost",
    "calibrated": "calibrated:Calibrated",
}
LEARNERS = tuple(_LEARNERS)
DEFAULT = "tau_cost"


def learner(name: str, **options: Any) -> Learner:
    """Create the learner `name` with its options. Raises `DatasetError` for an unknown name."""
    if name not in _LEARNERS:
        raise DatasetError(f"unknown learner {name!r} ({did_you_mean(name, LEARNERS)}known: {', '.join(LEARNERS)})")
    module, cls = _LEARNERS[name].split(":")
    made: Learner = getattr(import_module(f"{__name__}.{module}"), cls)(**options)
    return made
