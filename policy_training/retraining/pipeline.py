"""One retraining: from the router's records to a candidate in the registry, and past its gate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from draftpick.engines.arms import default_arm, engine_of
from draftpick.policy_training.data.dataset import Dataset, DatasetError, smallest_featurizer
from draftpick.policy_training.data.from_records import (
    by_time,
    contexts_of,
    dataset_of,
    impute_missing_arms,
    logged_feedback,
    paired_rows,
    random_arm_rows,
)
from draftpick.policy_training.data.matrix import Matrix, matrix
from draftpick.policy_training.data.step_costs import ARRAYS, Costs
from draftpick.policy_training.evaluation.ope import reward_model
from draftpick.policy_training.learners.base import Learner, LearnerSetting
from draftpick.policy_training.learners.ray_train import Workers
from draftpick.policy_training.retraining.gates import OFFLINE, REFIT
from draftpick.policy_training.retraining.gates.base import MIN_PAIRED, Verdict, evaluate, skipped
from draftpick.policy_training.retraining.gates.generalization import RefitInputs
from draftpick.policy_training.retraining.gates.offline import LoggedEvidence
from draftpick.policy_training.train import fitted, train_policy
from draftpick.router.features.lexical import stored_context
from draftpick.router.online.events import Event, bounded_time
from draftpick.router.policies import artifact, read
from draftpick.router.policies.base import Policy
from draftpick.router.registry.registry import Registry
from draftpick.router.types import Record

RETRAINING_EVENTS = ("arm_changed", "inputs_changed", "safe_mode_entered")
"""Events that trigger a retraining, evaluated on later records."""
_EARLIER = 0.6
_MAX_RECORDS = 20_000
BY = "retraining"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RetrainingPlan:
    """Settings of candidates. `featurizer`: None: the active policy's, or the smallest in the records.

    `base`: additional measured or replayed training requests; `reworded`: some of them in other words, for evaluation.
    `require_significance`: whether records must prove a gain before live traffic. `workers`: where to fit a network;
    policies for evaluation only are fitted in this process. Step costs of arms with too few records are taken from the
    active policy.
    """

    learner: Learner
    default: str
    featurizer: str | None = None
    base: Dataset | None = None
    reworded: Dataset | None = None
    training_domains: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    seed: int = 0
    require_significance: bool = True
    max_records: int = _MAX_RECORDS
    workers: Workers | None = None


@dataclass(frozen=True, slots=True)
class RetrainingResult:
    """`action`: `candidate` gets live traffic; `promoted` is the first of its registry; `refused` failed its gate."""

    action: Literal["candidate", "promoted", "refused"]
    id: str | None
    report: dict[str, Any]


def changed_since(events: Sequence[Event]) -> dict[str, float]:
    """Time of each arm's last change, from the routers' events."""
    return {
        event.arm: bounded_time(event.time) for event in events if event.kind == "arm_changed" and event.arm is not None
    }


def retrain(
    records: Sequence[Record],
    events: Sequence[Event],
    registry: Registry,
    plan: RetrainingPlan,
    on_progress: Callable[[str], None] = lambda what: None,
) -> RetrainingResult:
    """Train on the earlier records, evaluate on the later ones. Raises `DatasetError`, `PolicyRejected`.

    An arm's records before its last change are dropped, but not the active policy's knowledge of it. `on_progress`:
    called with the current operation.
    """
    state = registry.state()
    data = dataset_of(records[-plan.max_records :], changed_since(events))
    active = read(registry.active_folder(), data.arms) if state.active else None
    known = list(active.arms) if active else []
    arms = known + [arm for arm in data.arms if arm not in known]
    earlier, later = by_time(
        data, _EARLIER, since=max((e.time for e in events if e.kind in RETRAINING_EVENTS), default=0.0)
    )
    plan = replace(plan, default=default_arm(plan.default, arms))
    featurizer = plan.featurizer or (active.featurizer if active else None) or smallest_featurizer(data)
    costs = _costs(earlier, arms, _costs_of(registry.active_folder()) if active else None)
    learned = impute_missing_arms(earlier, arms, featurizer, costs, active)
    base = None if plan.base is None else matrix(plan.base, arms, featurizer=featurizer, costs=costs)
    learned = learned if base is None else learned + base
    setting = LearnerSetting(plan.default, costs, plan.seed, training_domains=plan.training_domains)
    with TemporaryDirectory() as folder:
        artefact = Path(folder) / "policy"
        span = {"from": records[0].time, "to": records[-1].time, "after": state.active}
        on_progress("training")
        train_policy(
            learned,
            plan.learner,
            replace(setting, workers=plan.workers),
            artefact,
            {"records": len(data.measurements), **span},
        )
        on_progress("evaluating on later records")
        verdict = evaluate(OFFLINE, _logged_evidence(read(artefact), active, later, featurizer, plan))
        if verdict.passed:
            inputs = _refit_inputs(learned, base, data, setting, plan, on_progress)
            verdict = verdict.joined(evaluate(REFIT, inputs))
        else:
            verdict = verdict.joined(skipped(REFIT, "the gate had already failed"))
        reason, counted = _reason(verdict), {"records": len(data.measurements), "dropped": dict(data.dropped)}
        report = {"reason": reason, "gate": verdict.as_json(), "not_made": dict(verdict.not_made), **counted}
        id = registry.add(artefact, report, BY)
    if not verdict.passed:
        registry.reject(id, BY, reason)
        return RetrainingResult("refused", id, report)
    if state.active is None:
        registry.promote(id, BY, reason)
        return RetrainingResult("promoted", id, report)
    registry.start_shadow(id, BY, reason)
    return RetrainingResult("candidate", id, report)


def _refit_inputs(
    learned: Matrix,
    base: Matrix | None,
    data: Dataset,
    setting: LearnerSetting,
    plan: RetrainingPlan,
    on_progress: Callable[[str], None],
) -> RefitInputs:
    """What the gates that train again are given."""
    reworded = None
    if plan.reworded is not None and base is not None:
        reworded = matrix(plan.reworded, learned.arms, featurizer=learned.featurizer, costs=setting.costs)
    return RefitInputs(
        learned,
        data,
        setting.default,
        lambda rows: fitted(rows, plan.learner, setting),
        setting.seed,
        base,
        reworded,
        on_progress,
    )


def _reason(verdict: Verdict) -> str:
    failed = [f"{check.name}: {check.why}" for check in verdict.checks if not check.passed]
    return "; ".join(failed) if failed and not verdict.passed else "the gate passed"


def _logged_evidence(
    candidate: Policy, active: Policy | None, later: Dataset, featurizer: str, plan: RetrainingPlan
) -> LoggedEvidence:
    """Raises `DatasetError` where no later record judges the candidate."""
    rows = random_arm_rows(later, featurizer)
    if not rows.measurements:
        raise DatasetError("no later record was drawn by a policy, so the candidate cannot be evaluated")
    arms = list(candidate.arms)
    logged, contexts = logged_feedback(rows, arms), contexts_of(rows, featurizer)
    own = _probabilities(candidate, contexts, featurizer, arms)
    before = _probabilities(active, contexts, featurizer, arms) if active else np.eye(len(arms))[logged.arm]
    times = paired_rows(later, rows, arms)
    if np.isfinite(times).all(1).sum() < MIN_PAIRED:
        own, before = (by_engine(pi, logged.arm, arms) for pi in (own, before))
    slices = [str(active.cluster(stored_context(v, featurizer)) if active else 0) for v in contexts]
    return LoggedEvidence(
        logged,
        own,
        before,
        reward_model(contexts, logged, len(arms)),
        default=arms.index(plan.default),
        slices=slices,
        require_significance=plan.require_significance,
        paired=times if np.isfinite(times).all(1).any() else None,
        seed=plan.seed,
    )


def by_engine(pi: Floats, logged: npt.NDArray[np.int64], arms: Sequence[str]) -> Floats:
    """Probabilities [n, arms] with those of a pool's arms summed up at the logged arm, if it is of that pool: whichever
    of its drafters a policy prefers, the pool answers, and mends the choice."""
    engines = np.asarray([engine_of(arm) for arm in arms])
    same = engines[logged][:, None] == engines
    rows, found = np.arange(len(pi)), np.where(same, 0.0, pi)
    found[rows, logged] = (pi * same).sum(1)
    return found


def _probabilities(policy: Policy, contexts: npt.NDArray[np.float32], featurizer: str, arms: Sequence[str]) -> Floats:
    """Probabilities of a policy [n, arms]; 0 for an arm unknown to it."""
    everywhere, found = np.ones(len(policy.arms), bool), np.zeros((len(contexts), len(arms)))
    rows = [policy.probabilities(stored_context(v, featurizer), everywhere) for v in contexts]
    found[:, [arms.index(arm) for arm in policy.arms]] = np.stack(rows)
    return found


def _costs_of(folder: Path) -> Costs | None:
    """The costs in a policy's manifest, if any."""
    known = artifact.read(folder)[0].get("provenance", {}).get("costs")
    return Costs.from_json(known) if known else None


def _costs(data: Dataset, arms: Sequence[str], known: Costs | None) -> Costs:
    """Costs from the records; for an arm with too few, the known ones, scaled to the speed of this machine."""
    measured_arms, own = [], []
    for arm in arms:
        try:
            own.append(Costs.fit(data, [arm]))
            measured_arms.append(arm)
        except DatasetError:
            if known is None or arm not in known.arms:
                raise
    if known is None:
        return Costs.fit(data, arms)
    measured = dict(zip(measured_arms, own, strict=True))
    ratios = [
        measured[arm].step_s[0, 0] / known.select([arm]).step_s[0, 0] for arm in measured_arms if arm in known.arms
    ]
    speed = float(np.median(ratios)) if ratios else 1.0
    rows = [measured.get(arm) or known.select([arm]).slower(speed) for arm in arms]
    return Costs(tuple(arms), *(np.concatenate([getattr(row, name) for row in rows]) for name in ARRAYS))
