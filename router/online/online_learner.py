"""What a running router learns of one policy from its own answers, and what it does about a world that has changed.

The ladder: an arm that changed loses its history and must promise more for a while; a policy whose times are not
corrected, and which loses against its own default engine, is put aside for that engine; an arm whose drafts collapse
is quarantined (`draftpick.router.online.quarantine`); and every finding is an event, which a retraining job reads.
"""

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence

from draftpick.router.config.sections import OnlineConfig
from draftpick.router.online.drift import ArmDriftDetector, InputDriftDetector, RegretMonitor
from draftpick.router.online.events import Event, EventHandler
from draftpick.router.online.residual_correction import ResidualCorrection
from draftpick.router.policies.base import Policy, Shifts
from draftpick.router.types import Decision, Outcome

_MIN_TOKENS = 4
_CAUTION, _CAUTIOUS_ANSWERS = 0.05, 30
_SUSPENSION_ANSWERS = 500
_MAX_UNLOADED_SLOWDOWN = 1.25
"""Steps that load makes longer by more than this say nothing of a policy."""
_MIN_SEEN, _MAX_SEEN = 5, 30
_KEPT_WEIGHT = 0.2


class OnlineLearner:
    """Follows one policy. `shifts`: corrections of log TPOT [bins, arms], None while there are none.

    `suspended`: the policy loses against its own default engine, which shall serve instead.
    """

    def __init__(self, config: OnlineConfig, policy: Policy, on_event: EventHandler = lambda event: None) -> None:
        self._config, self._policy, self._on_event = config, policy, on_event
        self._num_clusters = 2 * len(policy.clusters) if policy.clusters is not None else 1
        self.correction = ResidualCorrection(config.correction, self._num_clusters, len(policy.arms))
        self._arm_detectors = [ArmDriftDetector(config.drift) for _ in policy.arms]
        self._input_detector = InputDriftDetector(config.drift, self._num_clusters) if self._num_clusters > 1 else None
        self._regret_monitor, self._default = RegretMonitor(), policy.default_arm
        self._caution_left = [0] * len(policy.arms)
        self._default_residuals: deque[float] = deque(maxlen=_MAX_SEEN)
        self._num_answers, self._suspended_at = 0, 0
        self.suspended = False
        self.shifts: Shifts | None = None

    @property
    def corrects_times(self) -> bool:
        """Whether measured times correct those that the policy predicts."""
        return self._config.correction.enabled

    def observe_fallback(self) -> None:
        """Count an answer of the engine that serves while the policy is put aside; try the policy again in time."""
        self._num_answers += 1
        if self.suspended and self._num_answers - self._suspended_at >= _SUSPENSION_ANSWERS:
            self.suspended, self._regret_monitor = False, RegretMonitor()
            self._emit("policy_tried_again", f"{self._policy.id} serves again, to see whether it saves time now")

    def observe(
        self, cluster: int, decision: Decision, outcome: Outcome, in_flight: int, slowdown: float = 1.0
    ) -> None:
        """Take one answer into account. `cluster`: the kind of its request; `in_flight`: on its arm, itself among them;
        `slowdown`: by how much that made its steps longer."""
        self._num_answers += 1
        if self._config.drift.enabled and self._input_detector is not None and decision.reason == "policy":
            self._monitor_inputs(cluster)
        expected, tpot_s = decision.predicted_tpot_s, outcome.tpot_s
        if expected is None or tpot_s is None or tpot_s <= 0 or (outcome.output_tokens or 0) < _MIN_TOKENS:
            return  # by an engine's own clock, the first token of a whole answer may come after its last
        arm = self._policy.arms.index(decision.arm)
        alone_s = expected[arm] / decision.stretch  # of its load, the answer itself tells better
        residual = math.log(tpot_s / slowdown / alone_s)
        if self._config.drift.enabled:
            self._monitor_arm(arm, cluster, outcome, alone_s, in_flight, slowdown)
            own = decision.reason == "policy" and decision.policy == self._policy.id
            if (
                max(slowdown, decision.stretch) < _MAX_UNLOADED_SLOWDOWN
            ):  # under load, the default engine alone is no alternative
                self._monitor_regret(arm, residual, expected, own)
        if self._config.correction.enabled:
            self.correction.update(cluster, arm, residual)
        if self._config.correction.enabled or self._caution_left[arm]:
            self._caution_left[arm] = max(self._caution_left[arm] - 1, 0)
            self.refresh()

    def refresh(self) -> None:
        """Make `shifts` anew, after what was seen here or by other routers."""
        caution = [_CAUTION if left else 0.0 for left in self._caution_left]
        if self._config.correction.enabled:
            self.shifts = (self.correction.residuals() + caution).tolist()
        else:
            self.shifts = [caution] * self._num_clusters if any(caution) else None

    def _monitor_arm(
        self, arm: int, cluster: int, outcome: Outcome, predicted: float, in_flight: int, slowdown: float
    ) -> None:
        assert outcome.tpot_s is not None
        took_s = outcome.tpot_s / slowdown
        found = self._arm_detectors[arm].update(cluster, in_flight, took_s, outcome.acceptance_length, predicted)
        if found is None:
            return
        what, moved = found
        self.correction.reset_arm(arm)
        self._caution_left[arm] = _CAUTIOUS_ANSWERS
        name, times = self._policy.arms[arm], math.exp(moved)
        said = (
            f"a step takes {times:.2f} times as long" if what == "costs" else f"{times:.2f} times as much is accepted"
        )
        self._emit("arm_changed", f"engine {name}: {said} as before; its history is forgotten", name, {what: moved})

    def _monitor_inputs(self, cluster: int) -> None:
        assert self._input_detector is not None
        index = self._input_detector.update(cluster)
        if index is None:
            return
        self._input_detector = InputDriftDetector(self._config.drift, self._num_clusters)
        self.correction.discount(_KEPT_WEIGHT)
        self._default_residuals.clear()
        for watch in self._arm_detectors:
            watch.drafts.clear()  # an arm may do worse on other requests, and be well
        self._emit(
            "inputs_changed",
            f"other kinds of requests come than before (stability index {index:.2f})",
            None,
            {"stability_index": index},
        )

    def _monitor_regret(self, arm: int, residual: float, expected: Sequence[float], own: bool) -> None:
        """Compare with what the default engine would have taken, as it was seen of late.

        `own`: the policy chose the arm itself. Others, and shadows, tell of the default engine alone.
        """
        if self._default is None or self.suspended or self._config.correction.enabled:
            return
        if arm == self._default:
            self._default_residuals.append(residual)
        if not own or arm == self._default or len(self._default_residuals) < _MIN_SEEN:
            return
        of_default = math.log(expected[self._default]) + sum(self._default_residuals) / len(self._default_residuals)
        lost = self._regret_monitor.update(of_default - math.log(expected[arm]) - residual)
        if lost is not None:
            self.suspended, self._suspended_at = True, self._num_answers
            name = self._policy.arms[self._default]
            self._emit(
                "policy_loses",
                f"{self._policy.id} loses {lost:.0%} against {name} alone, which serves for now",
                name,
                {"lost": lost},
            )

    def _emit(self, kind: str, text: str, arm: str | None = None, figures: Mapping[str, float] | None = None) -> None:
        self._on_event(Event(time.time(), kind, text, arm, self._policy.id, figures or {}))
