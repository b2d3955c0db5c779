"""`draftpick retrain`: builds the controller of candidates from records and datasets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from draftpick.deploy.workflows.featurizers import read_training_domains
from draftpick.policy_training.data.dataset import load
from draftpick.policy_training.data.record_store import RecordStore
from draftpick.policy_training.learners import learner
from draftpick.policy_training.learners.ray_train import Workers
from draftpick.policy_training.retraining.controller import RolloutConfig, RolloutController
from draftpick.policy_training.retraining.pipeline import RetrainingPlan
from draftpick.router.registry.registry import Registry


@dataclass(frozen=True, slots=True)
class RetrainOptions:
    """Options of retraining. `records`: a folder or an fsspec URL; `readers`: Ray workers that read them, 0: none;
    `workers`: Ray workers that fit a network.
    """

    records: str
    registry: Path
    data: Sequence[Path]
    paraphrased_data: Sequence[Path]
    learner: str
    default_engine: str
    featurizer: str | None
    training_domains: Sequence[str]
    seed: int
    require_significance: bool
    readers: int
    workers: Workers | None

    def controller(self, rollout: RolloutConfig, on_event: Callable[[str], None]) -> RolloutController:
        """The controller of the registry. Raises `DatasetError`, and ValueError for bad training domains."""
        plan = RetrainingPlan(
            learner(self.learner),
            self.default_engine,
            self.featurizer,
            base=load(*self.data) if self.data else None,
            reworded=load(*self.paraphrased_data) if self.paraphrased_data else None,
            training_domains=read_training_domains(self.training_domains, self.featurizer or ""),
            seed=self.seed,
            require_significance=self.require_significance,
            workers=self.workers,
        )
        store = RecordStore(self.records, self.readers)
        return RolloutController(store, Registry(self.registry), plan, rollout, on_event)
