"""`draftpick train` and related commands: selects times and contexts of datasets, trains, and records provenance."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from draftpick.deploy.workflows.featurizers import read_training_domains
from draftpick.engines.arms import default_arm
from draftpick.policy_training.data.data_card import load_prompt_cards
from draftpick.policy_training.data.dataset import Dataset, load, smallest_featurizer
from draftpick.policy_training.data.from_records import (
    by_time,
    contexts_of,
    from_records,
    impute_missing_arms,
    logged_feedback,
    random_arm_rows,
)
from draftpick.policy_training.data.matrix import Matrix, matrix
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.evaluation.evaluate import Evaluation, evaluate
from draftpick.policy_training.evaluation.ope import estimate_all, reward_model
from draftpick.policy_training.headroom.simulated import read_profiles, unloaded_costs
from draftpick.policy_training.learners.base import Learner, LearnerSetting, ProgressCallback
from draftpick.policy_training.learners.ray_train import Workers
from draftpick.policy_training.train import out_of_source_probabilities, policy_probabilities, train_policy
from draftpick.router.features.lexical import stored_context
from draftpick.router.policies import read

_EARLIER = 0.75


def matrix_of(
    data: Dataset, featurizer: str | None, arms: Sequence[str], profiles: Path | None = None
) -> tuple[Matrix, Costs]:
    """The matrix of a dataset and its costs: those of a folder of profiles, or else of its live measurements.

    Replayed requests get their times from the costs; if all were measured, the measured times count.
    """
    costs = unloaded_costs(read_profiles(profiles)).select(arms) if profiles is not None else Costs.fit(data, arms)
    replayed = any(m.source == "replay" for m in data.measurements)
    return matrix(data, arms, featurizer=featurizer, costs=costs if replayed else None), costs


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Options of training: a featurizer (None: the smallest in the data) and the drafters' training domains.

    `workers`: where to fit a network; None: in this process. `profiles`: folder of profiles that give the costs; None:
    live measurements do.
    """

    learner: Learner
    default: str
    featurizer: str | None
    training_domains: Sequence[str]
    seed: int
    on_progress: ProgressCallback
    workers: Workers | None = None
    profiles: Path | None = None

    def setting(self, costs: Costs, featurizer: str) -> LearnerSetting:
        """Convert to a learner's setting. Raises ValueError for an unreadable training domain."""
        homes = read_training_domains(self.training_domains, featurizer)
        return LearnerSetting(
            default_arm(self.default, costs.arms), costs, self.seed, self.on_progress, homes, self.workers
        )

    @property
    def provenance(self) -> dict[str, Any]:
        """Fields for the manifest."""
        return {"homes": [Path(source).name for source in self.training_domains]}


def train_on_data(paths: Sequence[Path], options: TrainOptions, out: Path) -> dict[str, Any]:
    """Train on datasets and write the artefact; return a summary."""
    data = load(*paths)
    name = smallest_featurizer(data, options.featurizer)
    made, costs = matrix_of(data, name, data.arms, options.profiles)
    files = [{name: card[name] for name in ("file", "sha256")} for card in load_prompt_cards(*paths)]
    provenance = {"data": [path.name for path in paths], "prompts": files, **options.provenance}
    train_policy(made, options.learner, options.setting(costs, name), out, provenance)
    shown = {"policy": str(out), "requests": len(made), "arms": list(made.arms), "featurizer": made.featurizer}
    return {**shown, "dropped": made.dropped}


def train_on_records(folder: Path, options: TrainOptions, out: Path) -> dict[str, Any]:
    """Train on the earlier records, write the artefact, and estimate its value on the later ones."""
    data = from_records(folder)
    earlier, later = by_time(data, _EARLIER)
    name = smallest_featurizer(data, options.featurizer)
    costs = Costs.fit(earlier, data.arms)
    made = impute_missing_arms(earlier, data.arms, name, costs)
    provenance = {"records": len(data.measurements), **options.provenance}
    train_policy(made, options.learner, options.setting(costs, name), out, provenance)
    later = random_arm_rows(later)
    seen, contexts = logged_feedback(later, data.arms), contexts_of(later, name)
    policy, everywhere = read(out), np.ones(len(data.arms), bool)
    order = [policy.arms.index(arm) for arm in data.arms]
    pi = np.stack([policy.probabilities(stored_context(v, name), everywhere)[order] for v in contexts])
    estimates = estimate_all(seen, pi, reward_model(contexts, seen, len(data.arms)), seed=options.seed)
    logging_tpot = -float(seen.reward.mean())
    figures = {
        k: [round(-1000 * v, 3) for v in (e.value.value, e.value.high, e.value.low)] for k, e in estimates.items()
    }
    effective = estimates["dr"].effective_sample_size
    return {
        "policy": str(out),
        "records": len(data.measurements),
        "arms": data.arms,
        "dropped": dict(data.dropped),
        "logged_tpot_ms": round(1000 * logging_tpot, 3),
        "estimated_tpot_ms": figures,
        "effective_records": round(effective, 1),
        "verdict": "estimated" if estimates["dr"].reliable else "too few records for a verdict",
    }


def evaluate_learner(
    paths: Sequence[Path], learner: Learner, default: str, featurizer: str | None, profiles: Path | None, seed: int
) -> Evaluation:
    """Evaluate a learner on the datasets' own sources, each by policies that were trained without it."""
    data = load(*paths)
    made, costs = matrix_of(data, smallest_featurizer(data, featurizer), data.arms, profiles)
    shares = out_of_source_probabilities(made, learner, LearnerSetting(default, costs, seed))
    return evaluate(made, (shares * made.time_s).sum(1), shares, default, seed=seed)


def evaluate_policy(paths: Sequence[Path], folder: Path, default: str, profiles: Path | None) -> Evaluation:
    """Evaluate the policy of a folder on datasets."""
    policy = read(folder)
    made = matrix_of(load(*paths), policy.featurizer, list(policy.arms), profiles)[0]
    shares = policy_probabilities(policy, made)
    return evaluate(made, (shares * made.time_s).sum(1), shares, default)
