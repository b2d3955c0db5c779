"""Controls the policies of a registry: retrains after a change, and rolls out candidates in steps.

    candidate -> shadow -> canary (1, 10, 50 %) -> active, with a holdout of the previous policy -> active alone

At any step a candidate may be rejected or rolled back.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from threadpoolctl import threadpool_limits

from draftpick.policy_training.data.record_store import RecordStore
from draftpick.policy_training.retraining.canary import STAGES, Limits, evaluate_holdout, evaluate_stage
from draftpick.policy_training.retraining.canary_data import BaselineStats, CanaryExperiment, canary_experiment
from draftpick.policy_training.retraining.pipeline import RETRAINING_EVENTS, RetrainingPlan, RetrainingResult, retrain
from draftpick.router.online.events import Event
from draftpick.router.registry.registry import Candidate, Registry, RegistryState
from draftpick.router.types import Record

BY = "keeper"
_SAFE_MODE = "safe_mode_entered"


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    """`stages`: canary shares by stage; ascending, in (0, 1).

    `holdout`: share of the previous policy after a promotion, 0: none; `holdout_requests`: number of requests with a
    holdout. `min_new_records`: records after an event, and between two trainings. `interval_s`: interval of trainings
    without an event.
    """

    stages: Sequence[float] = STAGES
    limits: Limits = field(default_factory=Limits)
    min_new_records: int = 500
    interval_s: float | None = None
    holdout: float = 0.1
    holdout_requests: int = 4000


@dataclass(slots=True)
class RolloutController:
    """Performs one step at a time; its state is in the registry and the records, so it may be killed."""

    store: RecordStore
    registry: Registry
    plan: RetrainingPlan
    config: RolloutConfig = field(default_factory=RolloutConfig)
    notify: Callable[[str], None] = lambda text: None
    _trained_at: float | None = None

    def step(self) -> None:
        """Perform the next step. Raises `DatasetError`, `PolicyRejected`."""
        with threadpool_limits(1):  # on such small matrices, thread synchronisation takes longer than the computation
            self._step()

    def _step(self) -> None:
        state = self.registry.state()
        candidate = state.candidate
        if (candidate is None or candidate.stage == "holdout") and self._routers_report_loss(state):
            return
        if candidate is not None and self._is_outdated(state, candidate):
            self._reject(candidate, "engines or traffic have changed since")
        elif candidate is not None:
            self._evaluate_candidate(state, candidate)
        elif self._is_due(state):
            self.train()

    def train(self, on_progress: Callable[[str], None] = lambda what: None) -> RetrainingResult:
        """Train and gate a candidate now."""
        records = self.store.records()
        self._trained_at = records[-1].time if records else time.time()
        with threadpool_limits(1):
            made = retrain(records, self.store.events(), self.registry, self.plan, on_progress)
        self.notify(f"{made.id}: {made.action} ({made.report['reason']})")
        return made

    def _is_due(self, state: RegistryState) -> bool:
        trained = self._trained_at or max((c.time.timestamp() for c in state.history if c.action == "add"), default=0.0)
        if self.config.interval_s is not None and time.time() - trained >= self.config.interval_s:
            return True
        settled = max((c.time.timestamp() for c in state.history if c.action == "promote"), default=0.0)
        calls = self._calls(settled)
        if not calls and state.active is not None:
            return False
        return self._has_new(max([trained, *calls[-1:]]))

    def _is_outdated(self, state: RegistryState, candidate: Candidate) -> bool:
        """True if an event happened after a candidate was created, or a holdout began, and there is new data."""
        made = state.entry(candidate.id).created.timestamp()
        calls = self._calls(candidate.since if candidate.stage == "holdout" else made)
        return bool(calls) and self._has_new(calls[-1])

    def _calls(self, since: float) -> list[float]:
        """Times of events that call for a training."""
        return [e.time for e in self.store.events(since) if e.kind in RETRAINING_EVENTS]

    def _has_new(self, since: float) -> bool:
        return sum(r.decision.reason == "policy" for r in self.store.records(since)) >= self.config.min_new_records

    def _evaluate_candidate(self, state: RegistryState, candidate: Candidate) -> None:
        """Advance, hold, or reject the candidate, or the active policy by its holdout."""
        if candidate.stage == "shadow":
            self.registry.set_canary_share(candidate.id, self.config.stages[0], BY)
            self.notify(f"{candidate.id}: decides {self.config.stages[0]:.0%} of the requests")
            return
        began, records = candidate.began or candidate.since, self.store.records()
        found, decided = canary_experiment(records, began, state.entry(candidate.id).policy), _decided(records, began)
        if candidate.stage == "holdout":
            self._evaluate_holdout(state, found, decided)
        elif found is not None:
            self._evaluate_stage(candidate, *found)
        elif decided * candidate.share >= self.config.limits.max_requests:
            self._reject(candidate, "routers do not use it")

    def _evaluate_stage(self, candidate: Candidate, trial: CanaryExperiment, baseline: BaselineStats) -> None:
        later = [share for share in self.config.stages if share > candidate.share]
        next_share = later[0] if later else 1.0
        step = evaluate_stage(trial, baseline, since=candidate.since, next_share=next_share, limits=self.config.limits)
        if step.action == "roll_back":
            self._reject(candidate, step.why)
        elif step.action == "advance" and later:
            self.registry.set_canary_share(candidate.id, next_share, BY, step.why)
            self.notify(f"{candidate.id}: decides {next_share:.0%} of the requests ({step.why})")
        elif step.action == "advance":
            self.registry.promote(candidate.id, BY, step.why, holdout=self.config.holdout)
            self._append_event("policy_promoted", candidate.id, f"serves all requests ({step.why})")

    def _evaluate_holdout(
        self, state: RegistryState, found: tuple[CanaryExperiment, BaselineStats] | None, decided: int
    ) -> None:
        """Roll back the active policy if it is worse than the previous one; end the holdout in time."""
        active = state.active
        if active is None or state.pinned:
            return
        step = evaluate_holdout(found[0].swapped(), found[1], self.config.limits) if found is not None else None
        if step is not None and step.action == "roll_back":
            self._roll_back(active, step.why)
        elif decided >= self.config.holdout_requests:
            reason = f"no harm in {decided} requests"
            self.registry.end_holdout(BY, reason)
            self.notify(f"{active}: decides all requests ({reason})")

    def _reject(self, candidate: Candidate, why: str) -> None:
        """Reject a candidate, or end a holdout."""
        if candidate.stage == "holdout":
            self.registry.end_holdout(BY, why)
            return
        self.registry.reject(candidate.id, BY, why)
        self._append_event("candidate_rejected", candidate.id, f"rejected at {candidate.share:.0%} ({why})")

    def _routers_report_loss(self, state: RegistryState) -> bool:
        """Return to the previous policy if routers report a loss of the last promoted one, unless something else has
        changed since: then a new policy is due."""
        promoted = next((c for c in reversed(state.history) if c.action == "promote"), None)
        if state.previous is None or state.pinned or promoted is None or promoted.policy != state.active:
            return False
        assert state.active is not None
        since = [e for e in self.store.events(promoted.time.timestamp()) if e.kind in RETRAINING_EVENTS]
        if not since or since[0].kind != _SAFE_MODE or since[0].policy != state.policies[state.active].policy:
            return False
        self._roll_back(state.active, since[0].text)
        return True

    def _roll_back(self, id: str, why: str) -> None:
        self.registry.rollback(BY, why)
        self._append_event("policy_rolled_back", id, f"rolled back ({why})")

    def _append_event(self, kind: str, id: str, text: str) -> None:
        """Notify here, and in the events."""
        self.notify(f"{id}: {text}")
        self.store.append_event(
            Event(time.time(), kind, f"{id}: {text}", policy=self.registry.state().entry(id).policy)
        )


def _decided(records: Sequence[Record], since: float) -> int:
    """Number of requests decided by policies."""
    return sum(r.decision.reason == "policy" and r.time > since for r in records)
