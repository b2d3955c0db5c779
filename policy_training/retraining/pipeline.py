"""One retraining: records of the router become a candidate, which goes into the registry and, past its gate, on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

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
from draftpick.policy_training.retraining.generalization_gate import (
    domains_from_records,
    domains_from_tasks,
    leave_domain_out_checks,
    rewording_checks,
)
from draftpick.policy_training.retraining.offline_gate import Check, Verdict, evaluate_offline
from draftpick.policy_training.train import fitted, train_policy
from draftpick.router.features.lexical import stored_context
from draftpick.router.online.events import Event
from draftpick.router.policies import artifact, read
from draftpick.router.policies.base import Policy
from draftpick.router.registry.registry import Registry
from draftpick.router.types import Record

RETRAINING_EVENTS = ("arm_changed", "inputs_changed", "policy_loses")
"""Events after which a policy is trained anew, and judged by what came after them."""
_EARLIER = 0.6
_MAX_RECORDS = 20_000
BY = "retraining"
_FAILED_BEFORE = dict.fromkeys(("rewording", "left_out_domain"), "the gate had failed before")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RetrainingPlan:
    """How candidates are made. `featurizer`: None: the active policy's, or else the lightest in the records.

    `base`: measured or replayed requests that are learned from beside the records; `reworded`: some of them in other
    words, to judge by. `prove`: whether records must prove a gain before live traffic does. `workers`: where a network
    is fitted; those that only judge are fitted in this process. What a step costs on arms of which the records say too
    little is taken from the active policy.
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
    """`candidate` goes to live traffic, `promoted` is the first of its registry, `refused` failed its gate."""

    action: Literal["candidate", "promoted", "refused"]
    id: str | None
    report: dict[str, Any]


def changed_since(events: Sequence[Event]) -> dict[str, float]:
    """When each arm last changed, by what routers told of."""
    return {event.arm: event.time for event in events if event.kind == "arm_changed" and event.arm is not None}


def retrain(
    records: Sequence[Record],
    events: Sequence[Event],
    registry: Registry,
    plan: RetrainingPlan,
    on_progress: Callable[[str], None] = lambda what: None,
) -> RetrainingResult:
    """Train on the earlier records, judge by the later ones. Raises `DatasetError`, `PolicyRejected`.

    What an arm did before it changed is left out, but what the active policy knows of it is not. `told`: called with
    what is being done.
    """
    state = registry.state()
    active = read(registry.active_folder()) if state.active else None
    data = dataset_of(records[-plan.max_records :], changed_since(events))
    known = list(active.arms) if active else []
    arms = known + [arm for arm in data.arms if arm not in known]
    earlier, later = by_time(
        data, _EARLIER, since=max((e.time for e in events if e.kind in RETRAINING_EVENTS), default=0.0)
    )
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
        on_progress("judging by later records")
        verdict = _gate(read(artefact), active, later, featurizer, plan)
        unseen, not_made = (
            _unseen_checks(learned, base, data, setting, plan, on_progress) if verdict.passed else ([], _FAILED_BEFORE)
        )
        verdict = verdict.with_checks(unseen)
        reason, counted = _reason(verdict), {"records": len(data.measurements), "dropped": dict(data.dropped)}
        report = {"reason": reason, "gate": verdict.as_json(), "not_made": not_made, **counted}
        id = registry.add(artefact, report, BY)
    if not verdict.passed:
        registry.reject(id, BY, reason)
        return RetrainingResult("refused", id, report)
    if state.active is None:
        registry.promote(id, BY, reason)
        return RetrainingResult("promoted", id, report)
    registry.start_shadow(id, BY, reason)
    return RetrainingResult("candidate", id, report)


def _unseen_checks(
    learned: Matrix,
    base: Matrix | None,
    data: Dataset,
    setting: LearnerSetting,
    plan: RetrainingPlan,
    on_progress: Callable[[str], None],
) -> tuple[list[Check], dict[str, str]]:
    """Checks on requests that training has not seen; and those that were not made, with the reason."""

    def fit(rows: Matrix) -> Policy:
        return fitted(rows, plan.learner, setting)

    checks, not_made = list[Check](), dict[str, str]()
    if plan.reworded is None or base is None:
        not_made["rewording"] = "no --paraphrased-data was given with the --data of the same prompts"
    else:
        on_progress("in other words")
        other = matrix(plan.reworded, learned.arms, featurizer=learned.featurizer, costs=setting.costs)
        checks.append(rewording_checks(learned, base, other, setting.default, fit))
    try:
        domains = (
            domains_from_tasks(learned, base) if base is not None else domains_from_records(learned, data, setting.seed)
        )
        checks.append(leave_domain_out_checks(learned, domains, fit, lambda name: on_progress(f"without {name}")))
    except DatasetError as error:
        not_made["left_out_domain"] = str(error)
    return checks, not_made


def _reason(verdict: Verdict) -> str:
    failed = [f"{check.name}: {check.why}" for check in verdict.checks if not check.passed]
    return "; ".join(failed) if failed and not verdict.passed else "the gate is passed"


def _gate(candidate: Policy, active: Policy | None, later: Dataset, featurizer: str, plan: RetrainingPlan) -> Verdict:
    rows = random_arm_rows(later, featurizer)
    if not rows.measurements:
        raise DatasetError("no later record was drawn by a policy: nothing judges the candidate")
    arms = list(candidate.arms)
    seen, contexts = logged_feedback(rows, arms), contexts_of(rows, featurizer)
    own = _probabilities(candidate, contexts, featurizer, arms)
    before = _probabilities(active, contexts, featurizer, arms) if active else np.eye(len(arms))[seen.arm]
    times = paired_rows(later, rows, arms)
    slices = [str(active.cluster(stored_context(v, featurizer)) if active else 0) for v in contexts]
    return evaluate_offline(
        seen,
        own,
        before,
        reward_model(contexts, seen, len(arms)),
        default=arms.index(plan.default),
        slices=slices,
        require_significance=plan.require_significance,
        paired=times if np.isfinite(times).all(1).any() else None,
        seed=plan.seed,
    )


def _probabilities(policy: Policy, contexts: npt.NDArray[np.float32], featurizer: str, arms: Sequence[str]) -> Floats:
    """What a policy would choose, [n, arms]; 0 for an arm that it does not know."""
    everywhere, found = np.ones(len(policy.arms), bool), np.zeros((len(contexts), len(arms)))
    rows = [policy.probabilities(stored_context(v, featurizer), everywhere) for v in contexts]
    found[:, [arms.index(arm) for arm in policy.arms]] = np.stack(rows)
    return found


def _costs_of(folder: Path) -> Costs | None:
    """The costs that a policy was trained with, where its manifest tells them."""
    known = artifact.read(folder)[0].get("provenance", {}).get("costs")
    return Costs.from_json(known) if known else None


def _costs(data: Dataset, arms: Sequence[str], known: Costs | None) -> Costs:
    """Costs of the records; of an arm that they say too little of, the known ones, at the speed of this machine."""
    seen, own = [], []
    for arm in arms:
        try:
            own.append(Costs.fit(data, [arm]))
            seen.append(arm)
        except DatasetError:
            if known is None or arm not in known.arms:
                raise
    if known is None:
        return Costs.fit(data, arms)
    measured = dict(zip(seen, own, strict=True))
    ratios = [measured[arm].step_s[0, 0] / known.select([arm]).step_s[0, 0] for arm in seen if arm in known.arms]
    speed = float(np.median(ratios)) if ratios else 1.0
    rows = [measured.get(arm) or known.select([arm]).slower(speed) for arm in arms]
    return Costs(tuple(arms), *(np.concatenate([getattr(row, name) for row in rows]) for name in ARRAYS))
