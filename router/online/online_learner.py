"""Online learning for one policy from live answers, and reactions to drift.

Reactions: a changed arm loses its history and needs a larger predicted gain for a while; the default arm becomes the
one that has proved best here; while routing loses time against the best single arm, that arm serves
(`draftpick.router.online.safe_mode`); an arm with a collapsed acceptance is quarantined
(`draftpick.router.online.quarantine`); every finding is an event, which a retraining job reads.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from draftpick.engines.arms import NONE, drafter_of, engine_of, pool_arm
from draftpick.router.config.sections import ExplorationConfig, OnlineConfig
from draftpick.router.online.drift import ArmDriftDetector, InputDriftDetector
from draftpick.router.online.events import Event, EventHandler
from draftpick.router.online.quarantine import MAX_ADAPTERS
from draftpick.router.online.residual_correction import FurtherCorrection, ResidualCorrection
from draftpick.router.online.safe_mode import PREFIX, SafeMode
from draftpick.router.policies.base import Policy, Shifts
from draftpick.router.policies.pool_arms import MENDING, shares_drafter
from draftpick.router.types import Decision, Outcome, acceptance_by_arm

_MIN_TOKENS = 4
_MIN_LEVEL_ANSWERS = 5.0
_CAUTION, _CAUTIOUS_ANSWERS = 0.05, 30
_MAX_UNLOADED_SLOWDOWN = 1.25
"""Maximum slowdown by load of answers that compare routing with one arm: under load, one alone is no alternative."""
_DEFAULT_EVERY = 16
"""Answers between two looks for a better default arm."""
_KEPT_WEIGHT = 0.2
_PROFILED_DEVIATION, _FOREIGN_DEVIATION = 0.15, 0.35
"""Standard deviation of an arm's log level before its first answer: with a profile, or with another machine's costs."""


class OnlineLearner:
    """Learns for one policy. `shifts`: corrections of log TPOT [bins, arms], None without any.

    `level_deviations`: standard deviations of the log levels of its times [arms], 0 for an arm whose level is known;
    None once exploration is narrow: when all are known, or after `wide_answers` answers for each arm.

    Answers of an adapter of the target correct its own times alone, on top of the target's corrections: a new adapter
    starts from these, and follows them if a machine or a drafter changes.

    It also sets the policy's `default_arm`, if it has one, to the arm that has proved best.
    """

    def __init__(
        self,
        config: OnlineConfig,
        policy: Policy,
        on_event: EventHandler = lambda event: None,
        exploration: ExplorationConfig | None = None,
    ) -> None:
        self._config, self._policy, self._on_event = config, policy, on_event
        self._exploration = exploration or ExplorationConfig()
        self._wide_answers_left = self._exploration.wide_answers * len(policy.arms)
        self._num_clusters = 2 * len(policy.clusters) if policy.clusters is not None else 1
        prior = [0.0 if drafter_of(arm) is None else math.log(MENDING) for arm in policy.arms]
        self.correction = ResidualCorrection(config.correction, self._num_clusters, len(policy.arms), prior)
        self._by_adapter: OrderedDict[str, ResidualCorrection] = OrderedDict()
        self._shifts_by_adapter: dict[str, Shifts] = {}
        self._arm_detectors = [ArmDriftDetector(config.drift) for _ in policy.arms]
        self._input_detector = InputDriftDetector(config.drift, self._num_clusters) if self._num_clusters > 1 else None
        self.safe_mode = SafeMode(config.safe_mode, policy.arms)
        self._shares_drafter = np.asarray(shares_drafter(policy.arms))
        self._caution_left = [0] * len(policy.arms)
        self.shifts: Shifts | None = None
        self.level_deviations: Sequence[float] | None = None
        if policy.pools:
            self.refresh()
        else:
            self._refresh_levels()

    @property
    def corrects_times(self) -> bool:
        """True if measured times correct the policy's predictions."""
        return self._config.correction.enabled

    def attach(self, policy: Policy) -> None:
        """Learn for this policy from now on: another one of the same id, which gets the default arm learned so far."""
        if policy is not self._policy:
            policy.default_arm, self._policy = self._policy.default_arm, policy

    def shifts_of(self, adapter: str) -> Shifts | None:
        """Return `shifts` for requests of an adapter; the target's own without answers of it."""
        own = self._by_adapter.get(adapter)
        if own is None:
            return self.shifts
        if (found := self._shifts_by_adapter.get(adapter)) is None:
            base = 0.0 if self.shifts is None else np.asarray(self.shifts)
            found = self._shifts_by_adapter[adapter] = (base + own.residuals()).tolist()
        return found

    def answers_of(self, adapter: str) -> float:
        """Return the weight of the answers that correct an adapter's times."""
        own = self._by_adapter.get(adapter)
        return sum(own.answers) if own is not None else 0.0

    def observe(
        self,
        cluster: int,
        decision: Decision,
        outcome: Outcome,
        in_flight: int,
        slowdown: float = 1.0,
        key: str = "",
        adapter: str = "",
    ) -> None:
        """Learn from one answer. `cluster`: of its request; `in_flight`: on its arm, including itself; `slowdown`:
        ratio by which load lengthened its steps; `key`: name of its API key; `adapter`: that answered."""
        self._count_wide_answer()
        if self._config.drift.enabled and self._input_detector is not None and decision.reason == "policy":
            self._monitor_inputs(cluster, key)
        expected, tpot_s = decision.predicted_tpot_s, outcome.tpot_s
        if expected is None or tpot_s is None or tpot_s <= 0 or (outcome.output_tokens or 0) < _MIN_TOKENS:
            return  # by an engine's own clock, the first token of an unstreamed answer may come after its last
        arm = self._policy.arms.index(decision.arm)
        assumed = decision.slowdown
        weight = self._arm_detectors[arm].keys.observe(key)
        alone_s = expected[arm] / assumed  # the answer itself measures its load better
        residual = math.log(tpot_s / slowdown / alone_s)
        if self._config.drift.enabled and not adapter:
            self._monitor_answer(arm, cluster, decision, outcome, in_flight, slowdown, key)
        if self._config.safe_mode.enabled and not adapter and max(slowdown, assumed) < _MAX_UNLOADED_SLOWDOWN:
            self._compare(arm, residual, decision, outcome, weight)
        if self._config.correction.enabled:
            correction = self._correction_of(adapter) if adapter else self.correction
            if outcome.drafters is None or decision.predicted_tau is None:
                correction.update(cluster, arm, residual, weight)
            else:
                self._correct_pool(correction, cluster, arm, residual, decision, outcome, weight)
        if adapter:
            self._shifts_by_adapter.pop(adapter, None)
        elif self._config.correction.enabled or self._caution_left[arm]:
            self._caution_left[arm] = max(self._caution_left[arm] - 1, 0)
            self.refresh()

    def reset_arm(self, arm: str) -> None:
        """Discard what answers of an arm have shown, after a change of its predictions."""
        self._forget(self._policy.arms.index(arm))
        self.refresh()

    def _forget(self, arm: int) -> None:
        """Discard what answers of an arm have shown; its level is unknown again."""
        for correction in (self.correction, *self._by_adapter.values()):
            correction.reset_arm(arm)
        self.safe_mode.reset_arm(arm)
        most = self._exploration.wide_answers
        self._wide_answers_left = min(max(self._wide_answers_left, 0) + most, most * len(self._policy.arms))

    def refresh(self) -> None:
        """Recompute `shifts` from local and other routers' observations."""
        caution = [_CAUTION if left else 0.0 for left in self._caution_left]
        if self._config.correction.enabled:
            self.shifts = (self.correction.residuals() + caution).tolist()
        else:
            self.shifts = [caution] * self._num_clusters if any(caution) else None
        self._shifts_by_adapter.clear()
        self._refresh_levels()

    def _count_wide_answer(self) -> None:
        """Count an answer, measurable or not, and end wide exploration after the last one."""
        if self.level_deviations is not None:
            self._wide_answers_left -= 1
            if self._wide_answers_left <= 0:
                self.level_deviations = None

    def _refresh_levels(self) -> None:
        if not self._config.correction.enabled or self._wide_answers_left <= 0:
            self.level_deviations = None
            return
        weights, errors = self.correction.level_errors()
        foreign, arms = self._policy.foreign_costs, self._policy.arms
        prior = np.asarray([_FOREIGN_DEVIATION if arm in foreign else _PROFILED_DEVIATION for arm in arms])
        answers, limit = np.asarray(self.correction.answers), self._exploration.wide_answers
        known = (answers >= limit) | ((errors < self._exploration.level_error) & (weights >= _MIN_LEVEL_ANSWERS))
        # Its steps are profiled here, and a pool tells on every request what its drafter would have had accepted.
        known |= self._shares_drafter & np.asarray([arm not in foreign for arm in arms])
        deviations = np.where(known, 0.0, 1.0 / np.sqrt(prior**-2.0 + errors**-2.0))
        self.level_deviations = deviations.tolist() if deviations.any() else None

    def _correction_of(self, adapter: str) -> ResidualCorrection:
        """The correction of an adapter, of what the target's leaves."""
        if (own := self._by_adapter.get(adapter)) is None:
            own = self._by_adapter[adapter] = FurtherCorrection(self._config.correction, self.correction)
            if len(self._by_adapter) > MAX_ADAPTERS:
                self._shifts_by_adapter.pop(self._by_adapter.popitem(last=False)[0], None)
        self._by_adapter.move_to_end(adapter)
        return own

    def _correct_pool(
        self,
        correction: ResidualCorrection,
        cluster: int,
        arm: int,
        residual: float,
        decision: Decision,
        outcome: Outcome,
        weight: float,
    ) -> None:
        """Correct all arms of a pool by one answer: the chosen one by its time, the others by what their drafters,
        scored on it, would have had accepted, relative to the chosen one's."""
        tau, scored = decision.predicted_tau, dict(self._scored(decision, outcome))
        assert tau is not None
        accepted = scored.setdefault(arm, outcome.acceptance_length or tau[arm])
        for one, theirs in scored.items():
            correction.update(
                cluster, one, residual + math.log(accepted / tau[arm]) + math.log(tau[one] / theirs), weight
            )

    def _scored(self, decision: Decision, outcome: Outcome) -> Iterator[tuple[int, float]]:
        """The arms of a pool whose acceptance length an answer shows, and that length; `none` has 1."""
        for name, tau, tokens in acceptance_by_arm(decision.arm, outcome):
            if tau is not None and (tokens or 0) >= _MIN_TOKENS and name in self._policy.arms:
                yield self._policy.arms.index(name), tau
        if (plain := pool_arm(engine_of(decision.arm), NONE)) in self._policy.arms:
            yield self._policy.arms.index(plain), 1.0

    def _monitor_answer(
        self, arm: int, cluster: int, decision: Decision, outcome: Outcome, in_flight: int, slowdown: float, key: str
    ) -> None:
        """Test for changes: steps and acceptance of the arm; of a pool, the acceptance of every scored drafter."""
        assert outcome.tpot_s is not None
        assert decision.predicted_tpot_s is not None
        alone_s = np.asarray(decision.predicted_tpot_s) / decision.slowdown
        took_s, detectors = outcome.tpot_s / slowdown, self._arm_detectors
        if outcome.drafters is None:
            found = detectors[arm].update(cluster, in_flight, took_s, outcome.acceptance_length, alone_s[arm], key)
            if found is not None:
                self._react(arm, *found)
            return
        step_s = took_s * (outcome.acceptance_length or 1.0)
        if (found := detectors[arm].update(cluster, in_flight, step_s, None, alone_s[arm], key)) is not None:
            self._react(arm, *found)
        for one, tau in self._scored(decision, outcome):
            if one != arm:
                detectors[one].keys.observe(key)
            if (found := detectors[one].update(cluster, in_flight, None, tau, alone_s[one], key)) is not None:
                self._react(one, *found)

    def _react(self, arm: int, what: str, moved: float) -> None:
        """Forget what answers of a changed arm have shown, and report it."""
        self._forget(arm)
        self._caution_left[arm] = _CAUTIOUS_ANSWERS
        name, times = self._policy.arms[arm], math.exp(moved)
        said = (
            f"a step takes {times:.2f} times as long"
            if what == "costs"
            else f"{times:.2f} times as many tokens are accepted"
        )
        self._emit("arm_changed", f"engine {name}: {said} as before; its history is forgotten", name, {what: moved})

    def _monitor_inputs(self, cluster: int, key: str) -> None:
        assert self._input_detector is not None
        index = self._input_detector.update(cluster, key)
        if index is None:
            return
        self._input_detector = InputDriftDetector(self._config.drift, self._num_clusters)
        self.correction.discount(_KEPT_WEIGHT)
        for watch in self._arm_detectors:
            watch.drafts.clear()  # acceptance may change with the requests, without a fault of the arm
        self._emit(
            "inputs_changed",
            f"the mix of requests has changed (stability index {index:.2f})",
            None,
            {"stability_index": index},
        )

    def _compare(self, arm: int, residual: float, decision: Decision, outcome: Outcome, weight: float) -> None:
        """Compare routing with every engine alone: enter or leave safe mode, and look for a better default arm."""
        assert decision.predicted_tpot_s is not None
        made, safe_mode, comparison = decision.policy, self.safe_mode, self.safe_mode.comparison
        own = decision.reason == "policy" and (made == self._policy.id or made.startswith(PREFIX))
        preferred = decision.reason == "policy" and decision.propensity >= max(decision.probabilities.values())
        if made.startswith(PREFIX):  # the safe engine serves whatever the request
            preferred = made != PREFIX + engine_of(decision.arm)
        alone_s = np.asarray(decision.predicted_tpot_s)
        alone_s = alone_s if decision.load is None else alone_s / np.asarray(decision.load.slowdown)
        residual, alone_s = safe_mode.by_engine(arm, residual, alone_s)
        comparison.observe(safe_mode.place(arm), residual, preferred, weight)
        if not own or list(decision.probabilities) != list(self._policy.arms):
            return
        tokens = weight * (outcome.output_tokens or 0)
        changed = safe_mode.observe(decision, arm, residual, alone_s, tokens)
        if changed:
            self._report_safe_mode()
        default = self._policy.default_arm
        if default is not None and safe_mode.arm is None and comparison.requests % _DEFAULT_EVERY == 0:
            place = safe_mode.place(default)
            if (best := comparison.best_arm(place)) != place:
                self._policy.default_arm = safe_mode.arm_of(best)

    def safe_mode_state(self) -> dict[str, object] | None:
        """The policy, the arm that serves instead, and the share of time that routing loses; None if routing serves."""
        if self.safe_mode.arm is None:
            return None
        lost = math.expm1(self.safe_mode.loss)
        return {"policy": self._policy.id, "arm": self.safe_mode.engines[self.safe_mode.arm], "lost": lost}

    def _report_safe_mode(self) -> None:
        safe_mode, window = self.safe_mode, self._config.safe_mode.window
        if safe_mode.arm is None:
            self._emit(
                "safe_mode_left", f"{self._policy.id} routes again: it is no longer slower than one engine alone"
            )
            return
        name = safe_mode.engines[safe_mode.arm]
        lost, least = math.expm1(safe_mode.loss), math.expm1(safe_mode.low)
        text = (
            f"routing was {lost:.0%} slower than {name} alone over the last {window} requests (at least {least:.1%}): "
            f"safe mode, {name} serves"
        )
        self._emit("safe_mode_entered", text, name, {"lost": lost, "at_least": least})

    def _emit(self, kind: str, text: str, arm: str | None = None, figures: Mapping[str, float] | None = None) -> None:
        self._on_event(Event(time.time(), kind, text, arm, self._policy.id, figures or {}))
