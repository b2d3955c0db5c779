"""The policies in service: the active one, and a candidate that decides a share of the requests under test."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from draftpick.engines.profile.profile import Profile
from draftpick.router.config.router_config import RouterConfig
from draftpick.router.config.sections import DEFAULT_EXPLORATION_RATE
from draftpick.router.online.events import Event, EventLog
from draftpick.router.online.online_learner import OnlineLearner
from draftpick.router.policies.base import DecisionInput, Policy
from draftpick.router.types import Attempt, Context, Decision, LoadTerms, Outcome


@dataclass(frozen=True, slots=True)
class PolicyInService:
    """A policy and its online learner."""

    policy: Policy
    online: OnlineLearner

    def accepts(self, context: Context | None) -> bool:
        """True if a context has the policy's features: another policy may have served when it was made."""
        return context is not None and context.featurizer == self.policy.featurizer

    def own_prediction(self, context: Context | None, decision: Decision) -> Decision | None:
        """A decision with this policy's predictions; None without any. Raises what the policy raises."""
        if not self.accepts(context) or decision.arm not in self.policy.arms:
            return None
        if decision.policy == self.policy.id:
            return decision
        load = reorder_load_terms(decision.load, tuple(decision.probabilities), self.policy.arms)
        forecast = self.policy.score(context, np.ones(len(self.policy.arms), bool), load=load)[1]
        if forecast is None:
            return None
        return replace(decision, predicted_tpot_s=forecast.tpot_s, predicted_tau=forecast.tau)


def reorder_load_terms(load: LoadTerms | None, arms: Sequence[str], target_arms: Sequence[str]) -> LoadTerms | None:
    """Reorder load terms of `arms` to `target_arms`; None if one of these is missing."""
    if load is None or tuple(arms) == tuple(target_arms):
        return load
    if not set(arms) >= set(target_arms):
        return None
    at = [arms.index(arm) for arm in target_arms]
    columns = load.slowdown, load.objective_weight, load.wait_s, load.cached_prefix_tokens, load.prefill_weight
    return LoadTerms(*([values[i] for i in at] for values in columns))  # type: ignore[arg-type]


class ActivePolicies:
    """Makes decisions. `explore`: the exploration rate, mutable. `policy`: the active one."""

    def __init__(self, config: RouterConfig, policy: Policy, events: EventLog) -> None:
        self._config, self.events = config, events
        self._profiles: Mapping[str, Profile] = {}
        self._explore = config.exploration.rate
        self.policy, self._active = policy, self._in_service(policy, {})
        self._candidate: PolicyInService | None = None
        self.share = 0.0

    @property
    def explore(self) -> float:
        """The exploration rate, once exploration is narrow."""
        if self._explore is not None:
            return self._explore
        predicts_times = self.policy.uses_load and self._config.online.correction.enabled
        return DEFAULT_EXPLORATION_RATE if predicts_times else 0.0

    @explore.setter
    def explore(self, rate: float) -> None:
        self._explore = rate

    @property
    def candidate(self) -> Policy | None:
        """The policy under test, which decides the share `share` of the requests."""
        return self._candidate.policy if self._candidate is not None else None

    def activate(self, policy: Policy, candidate: Policy | None = None, share: float = 0.0) -> None:
        """Take these policies into service; learners of policies already in service are kept, by id."""
        learned = dict(self.learners())
        self.policy, self._active = policy, self._in_service(policy, learned)
        self._candidate = None if candidate is None else self._in_service(candidate, learned)
        self.share = share if candidate is not None else 0.0

    def decide(self, given: DecisionInput, rng: np.random.Generator) -> Decision:
        """Draw the policy, then the arm; the propensity is the arm's probability under the drawn policy.

        With two policies in service, the decision also holds the other one's probabilities. Raises what the policy
        raises.
        """
        served, other, share = self._active, self._candidate, 1.0 - self.share
        if other is None or not self.share:
            return self._decide_by(served, given, rng)
        if rng.random() < self.share:
            served, other, share = other, served, self.share
        decision = self._decide_by(served, given, rng)
        try:
            would = self._decide_by(other, given, rng)
        except Exception:  # a policy may be third-party code, and this one is optional here
            return replace(decision, policy_share=share)
        return replace(decision, policy_share=share, other_policy_probabilities={would.policy: would.probabilities})

    def _decide_by(self, served: PolicyInService, given: DecisionInput, rng: np.random.Generator) -> Decision:
        online, levels = served.online, served.online.level_deviations if given.may_explore_widely else None
        decision = served.policy.decide(
            given, rng, online.shifts_of(given.adapter) if given.adapter else online.shifts, levels
        )
        return (
            decision
            if online.safe_mode.arm is None
            else online.safe_mode.decide(decision, given.eligible, rng.random())
        )

    def by_id(self, id: str) -> PolicyInService:
        """The policy of this id, if it is in service; else the active one."""
        other = self._candidate
        return other if other is not None and other.policy.id == id else self._active

    def cluster(self, context: Context | None, decision: Decision) -> int:
        """The request's cluster by the active policy: from its decision, if it decided."""
        if decision.cluster is not None and decision.policy == self.policy.id:
            return decision.cluster
        return self.policy.cluster(context) if self._active.accepts(context) else 0

    def classify(self, attempt: Attempt) -> Attempt:
        """An answered attempt with its request's cluster by the active policy. Raises what the policy raises."""
        if attempt.running is None or (attempt.cluster is not None and attempt.cluster[0] == self.policy.id):
            return attempt
        cluster, decision = self.cluster(attempt.context, attempt.decision), attempt.decision
        if decision.policy == self.policy.id and decision.cluster is None:
            decision = replace(decision, cluster=cluster)
        return replace(attempt, decision=decision, cluster=(self.policy.id, cluster))

    def observe(
        self,
        context: Context | None,
        cluster: int,
        decision: Decision,
        outcome: Outcome,
        in_flight: int,
        slowdown: float = 1.0,
        key: str = "",
        adapter: str = "",
    ) -> None:
        """Let both policies learn from a finished answer, off the request's path.

        `cluster`: from `cluster`; `in_flight`: requests on its arm, including itself; `slowdown`: ratio by which load
        lengthened its steps; `key`: name of its API key; `adapter`: that answered.
        """
        for served in (self._active, self._candidate):
            if served is None:
                continue
            if (own := served.own_prediction(context, decision)) is not None:
                own_cluster = cluster if served is self._active else served.policy.cluster(context)
                served.online.observe(own_cluster, own, outcome, in_flight, slowdown, key, adapter)

    def learners(self) -> list[tuple[str, OnlineLearner]]:
        """Learners of the policies in service, by id."""
        return [(s.policy.id, s.online) for s in (self._active, self._candidate) if s is not None]

    def safe_modes(self) -> list[dict[str, object]]:
        """The policies in service whose routing was measured slower than an engine alone, which serves instead."""
        learners = (served.online for served in (self._active, self._candidate) if served is not None)
        return [found for online in learners if (found := online.safe_mode_state()) is not None]

    def use_profiles(self, profiles: Mapping[str, Profile]) -> None:
        """Decide by these costs from now on; corrections of other costs are discarded."""
        self._profiles = profiles
        for served in (self._active, self._candidate):
            if served is not None:
                for arm in served.policy.use_profiles(profiles):
                    served.online.reset_arm(arm)
                served.online.refresh()

    def emit_for_arm(self, kind: str, text: str, arm: str) -> None:
        self.events.emit(Event(time.time(), kind, text, arm, self.policy.id))

    def _in_service(self, policy: Policy, learned: Mapping[str, OnlineLearner]) -> PolicyInService:
        policy.use_profiles(self._profiles)
        # An id identifies what a policy has learned, not its options: the new one decides.
        online = learned.get(policy.id) or OnlineLearner(
            self._config.online, policy, self.events.emit, self._config.exploration
        )
        online.attach(policy)
        return PolicyInService(policy, online)
