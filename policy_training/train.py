"""Fits a policy to a matrix of times, in memory or as an artefact, and evaluates its probabilities."""

import datetime
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.data.folds import group_folds, source_groups
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.learners.base import Learner, LearnerSetting
from draftpick.router import policies
from draftpick.router.features.lexical import stored_context
from draftpick.router.policies import artifact
from draftpick.router.policies.base import Policy
from draftpick.router.policies.shapes import Arrays

MIN_TRAINING_REQUESTS = 16
"""Minimum requests for training a policy."""


def fit(data: Matrix, learner: Learner, setting: LearnerSetting) -> tuple[dict[str, Any], Arrays]:
    """Manifest and arrays of a policy fitted to `data`. Raises `DatasetError` for unsuitable data.

    Runs on one thread: on such small matrices, synchronisation takes longer than the computation, and sums must not
    depend on the number of threads.
    """
    _check(data, setting.default)
    with threadpool_limits(1):
        made = learner.fit(data, setting)
    manifest = {
        "kind": made.kind,
        "arms": list(data.arms),
        "featurizer": data.featurizer,
        "options": made.options,
        "provenance": {
            "learner": type(learner).__name__,
            "learner_options": asdict(learner) if is_dataclass(learner) else {},
            "seed": setting.seed,
            "requests": len(data),
            "tasks": sorted(set(data.kinds)),
            "dropped": data.dropped,
            "costs": setting.costs.select(data.arms).as_json(),
        },
    }
    return manifest, made.arrays


def fitted(data: Matrix, learner: Learner, setting: LearnerSetting) -> Policy:
    """Fit a policy and load it as the router would."""
    manifest, arrays = fit(data, learner, setting)
    return policies.make({**manifest, "arrays_sha256": "0" * 64}, arrays)


def train_policy(
    data: Matrix, learner: Learner, setting: LearnerSetting, out: Path, provenance: dict[str, Any]
) -> dict[str, Any]:
    """Fit a policy and write its artefact to `out`; return the manifest."""
    manifest, arrays = fit(data, learner, setting)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    manifest["provenance"] = {"created": now, **manifest["provenance"], **provenance}
    artifact.write(out, manifest, arrays)
    return manifest


def _check(data: Matrix, default: str) -> None:
    if data.contexts is None or data.featurizer is None:
        raise DatasetError("the data has no contexts of a single featurizer")
    if default not in data.arms:
        raise DatasetError(f"the default engine {default!r} was not measured (measured: {', '.join(data.arms)})")
    if len(data) < MIN_TRAINING_REQUESTS or len(data.arms) < 2:
        raise DatasetError(
            f"{len(data)} usable requests under {len(data.arms)} arms are too few: at least "
            f"{MIN_TRAINING_REQUESTS} requests "
            f"under 2 arms are needed (dropped: {data.dropped})"
        )
    if not (np.isfinite(data.time_s).all() and np.isfinite(data.contexts).all()):
        raise DatasetError("times and contexts must be finite")


def out_of_source_probabilities(
    data: Matrix, learner: Learner, setting: LearnerSetting, folds: int = 5
) -> npt.NDArray[np.float64]:
    """Probabilities [n, arms] of policies whose training data lacks each request's source.

    What a user's own text may expect: a random split shares its sources with the test data, and does not tell. Raises
    `DatasetError` for fewer than two sources.
    """
    found, fold_of = np.empty((len(data), len(data.arms))), group_folds(source_groups(data), folds, setting.seed)
    if not fold_of.any():
        raise DatasetError("all requests are of one source: at least two are needed, to train without one of them")
    for fold in range(int(fold_of.max()) + 1):
        policy = fitted(data.select_rows(fold_of != fold), learner, replace(setting, progress=lambda done, total: None))
        found[fold_of == fold] = policy_probabilities(policy, data.select_rows(fold_of == fold))
        setting.progress(fold + 1, int(fold_of.max()) + 1)
    return found


def policy_probabilities(policy: Policy, data: Matrix) -> npt.NDArray[np.float64]:
    """Probabilities in service [n, arms], in the arms' order of `data`."""
    if policy.featurizer is not None and (data.contexts is None or data.featurizer != policy.featurizer):
        raise DatasetError(f"the policy needs contexts of {policy.featurizer!r}, the data has {data.featurizer!r}")
    if unknown := set(data.arms) ^ set(policy.arms):
        raise DatasetError(
            f"the policy has the arms {list(policy.arms)}, the data {list(data.arms)}: {sorted(unknown)}"
        )
    everywhere = np.ones(len(policy.arms), bool)
    if policy.featurizer is None or data.contexts is None:
        row = policy.probabilities(None, everywhere)
        rows = np.tile(row, (len(data), 1))
    else:
        rows = np.stack([policy.probabilities(stored_context(v, policy.featurizer), everywhere) for v in data.contexts])
    return np.asarray(rows[:, [policy.arms.index(arm) for arm in data.arms]])
