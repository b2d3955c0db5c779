"""Keeps a registry's policies good: retrains when the world changed, and takes candidates step by step to all requests.

candidate -> shadow -> canary (10, 50 %) -> active            or refused, or rolled back, at any step
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from policy_training.gates import STAGES, Limits, Stream, online, scale_of
from policy_training.record_store import RecordStore
from policy_training.retrain import CALLS_FOR, Plan, Result, retrain
from router.online import Event
from router.registry import Candidate, Registry, RegistryState
from router.types import Record

BY = "keeper"
_FAILED = ("engine_error", "timeout", "broken")
_FEWEST_TIMES = 20


@dataclass(frozen=True, slots=True)
class Rules:
    """`stages`: shares of the requests that a candidate decides, one after the other, of `gates.STAGES`.

    `fewest_new`: records after an event, and between two trainings. `every_s`: a training is due without any event.
    """

    stages: Sequence[float] = STAGES[:-1]
    limits: Limits = field(default_factory=Limits)
    fewest_new: int = 500
    every_s: float | None = None


@dataclass(slots=True)
class Keeper:
    """One step at a time; all that it knows is in the registry and in the records, so that it may be killed."""

    store: RecordStore
    registry: Registry
    plan: Plan
    rules: Rules = field(default_factory=Rules)
    tell: Callable[[str], None] = lambda text: None
    _trained_at: float | None = None

    def step(self) -> None:
        """Do what is due. Raises `DatasetError`, `PolicyRefused`."""
        state = self.registry.state()
        if state.candidate is not None:
            self._judge(state, state.candidate)
        elif not self._rolled_back(state) and self._is_due(state):
            self.train()

    def train(self) -> Result:
        """Train a candidate now, and gate it."""
        records = self.store.records()
        self._trained_at = records[-1].time if records else time.time()
        made = retrain(records, self.store.events(), self.registry, self.plan)
        self.tell(f"{made.id}: {made.action} ({made.report['reason']})")
        return made

    def _is_due(self, state: RegistryState) -> bool:
        trained = self._trained_at or max((c.time.timestamp() for c in state.history if c.action == "add"), default=0.0)
        if self.rules.every_s is not None and time.time() - trained >= self.rules.every_s:
            return True
        settled = max((c.time.timestamp() for c in state.history if c.action == "promote"), default=0.0)
        calls = [e for e in self.store.events(settled) if e.kind in CALLS_FOR]
        first = not state.active
        if not calls and not first:
            return False
        since = max([trained, *(e.time for e in calls[-1:])])
        return sum(r.decision.reason == "policy" for r in self.store.records(since)) >= self.rules.fewest_new

    def _judge(self, state: RegistryState, candidate: Candidate) -> None:
        """Let the candidate go on, wait, or end."""
        if candidate.stage == "shadow":
            self.registry.advance(candidate.id, self.rules.stages[0], BY)
            self.tell(f"{candidate.id}: decides {self.rules.stages[0]:.0%} of the requests")
            return
        assert state.active is not None, "only an active policy has a candidate beside it"
        ids = [state.policies[id].policy for id in (candidate.id, state.active)]
        before, during = _split(self.store.records(), candidate.since)
        times = _times(before, ids[1])
        own, active = (_stream(during, id) for id in ids)
        if len(times) < _FEWEST_TIMES or not own.failed.size or not active.failed.size:
            return
        step = online(own, active, share=candidate.share, scale_s=scale_of(times), limits=self.rules.limits)
        why = "; ".join(check.why for check in step.checks if not check.passed) or step.checks[-2].why
        if step.action == "roll_back":
            self.registry.refuse(candidate.id, BY, why)
            self.tell(f"{candidate.id}: refused at {candidate.share:.0%} ({why})")
        elif step.action == "advance":
            self._advance(candidate, why)

    def _advance(self, candidate: Candidate, why: str) -> None:
        later = [share for share in self.rules.stages if share > candidate.share]
        if later:
            self.registry.advance(candidate.id, later[0], BY, why)
            self.tell(f"{candidate.id}: decides {later[0]:.0%} of the requests ({why})")
        else:
            self.registry.promote(candidate.id, BY, why)
            self.tell(f"{candidate.id}: serves all requests ({why})")

    def _rolled_back(self, state: RegistryState) -> bool:
        """Go back to the policy before, when routers found that the one promoted last loses time."""
        promoted = next((c for c in reversed(state.history) if c.action == "promote"), None)
        if state.previous is None or state.pinned or promoted is None or promoted.policy != state.active:
            return False
        assert state.active is not None
        name = state.policies[state.active].policy
        loses = [e for e in self.store.events(promoted.time.timestamp()) if _says_loss(e, name)]
        if not loses:
            return False
        self.registry.rollback(BY, loses[0].text)
        self.tell(f"{state.active}: rolled back ({loses[0].text})")
        return True


def _says_loss(event: Event, policy: str) -> bool:
    return event.kind == "policy_loses" and event.policy == policy


def _split(records: Sequence[Record], at: float) -> tuple[list[Record], list[Record]]:
    return [r for r in records if r.time <= at], [r for r in records if r.time > at]


def _times(records: Sequence[Record], policy: str) -> npt.NDArray[np.float64]:
    found = [r.outcome.tpot_s for r in records if r.decision.policy == policy and r.outcome.tpot_s is not None]
    return np.asarray(found, np.float64)


def _stream(records: Sequence[Record], policy: str) -> Stream:
    """What happened to requests that a policy decided, those of the client's own fault left out."""
    rows = [
        r.outcome
        for r in records
        if r.decision.policy == policy and r.decision.reason == "policy" and r.attempt == 1
        and r.outcome.status not in ("client_error", "cancelled")
    ]  # fmt: skip
    tpot, ttft = (np.asarray([getattr(o, name) or np.nan for o in rows], np.float64) for name in ("tpot_s", "ttft_s"))
    return Stream(tpot, ttft, np.asarray([o.status in _FAILED for o in rows], bool))
