"""What a running router learns of one policy from its own answers, and what it does about a world that has changed.

The ladder: an arm that changed loses its history and must promise more for a while; a policy whose times are not
corrected, and which loses against its own default engine, is put aside for that engine; an arm whose drafts collapse
is quarantined (`router.acceptance`); and every finding is an event, which a retraining job reads.
"""

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence

from router.correction import Correction
from router.drift import ArmWatch, Inputs, Savings
from router.events import Event, Tell
from router.policies.base import Policy, Shifts
from router.sections import OnlineConfig
from router.types import Decision, Outcome

_FEWEST_TOKENS = 4
_CAUTION, _CAUTIOUS_ANSWERS = 0.05, 30
_PUT_ASIDE = 500
_CALM = 1.25
"""Steps that load makes longer by more than this say nothing of a policy."""
_FEWEST_SEEN, _MOST_SEEN = 5, 30
_KEPT = 0.2


class Online:
    """Follows one policy. `shifts`: corrections of log TPOT [bins, arms], None while there are none.

    `put_aside`: the policy loses against its own default engine, which shall serve instead.
    """

    def __init__(self, config: OnlineConfig, policy: Policy, tell: Tell = lambda event: None) -> None:
        self._config, self._policy, self._tell = config, policy, tell
        self._bins = 2 * len(policy.clusters) if policy.clusters is not None else 1
        self.correction = Correction(config.correction, self._bins, len(policy.arms))
        self._watches = [ArmWatch(config.drift) for _ in policy.arms]
        self._inputs = Inputs(config.drift, self._bins) if self._bins > 1 else None
        self._savings, self._default = Savings(), policy.default_arm
        self._cautious = [0] * len(policy.arms)
        self._of_default: deque[float] = deque(maxlen=_MOST_SEEN)
        self._seen, self._aside_at = 0, 0
        self.put_aside = False
        self.shifts: Shifts | None = None

    @property
    def corrects(self) -> bool:
        """Whether measured times correct those that the policy predicts."""
        return self._config.correction.enabled

    def waited(self) -> None:
        """Count an answer of the engine that serves while the policy is put aside; try the policy again in time."""
        self._seen += 1
        if self.put_aside and self._seen - self._aside_at >= _PUT_ASIDE:
            self.put_aside, self._savings = False, Savings()
            self._say("policy_tried_again", f"{self._policy.id} serves again, to see whether it saves time now")

    def saw(self, bin: int, decision: Decision, outcome: Outcome, in_flight: int, stretch: float = 1.0) -> None:
        """Take one answer into account. `bin`: the kind of its request; `in_flight`: on its arm, itself among them;
        `stretch`: by how much that made its steps longer."""
        self._seen += 1
        if self._config.drift.enabled and self._inputs is not None and decision.reason == "policy":
            self._watch_inputs(bin)
        expected, tpot_s = decision.predicted_tpot_s, outcome.tpot_s
        if expected is None or tpot_s is None or tpot_s <= 0 or (outcome.output_tokens or 0) < _FEWEST_TOKENS:
            return  # by an engine's own clock, the first token of a whole answer may come after its last
        arm = self._policy.arms.index(decision.arm)
        alone_s = expected[arm] / decision.stretch  # of its load, the answer itself tells better
        residual = math.log(tpot_s / stretch / alone_s)
        if self._config.drift.enabled:
            self._watch_arm(arm, bin, outcome, alone_s, in_flight, stretch)
            own = decision.reason == "policy" and decision.policy == self._policy.id
            if max(stretch, decision.stretch) < _CALM:  # under load, the default engine alone is no alternative
                self._watch_savings(arm, residual, expected, own)
        if self._config.correction.enabled:
            self.correction.saw(bin, arm, residual)
        if self._config.correction.enabled or self._cautious[arm]:
            self._cautious[arm] = max(self._cautious[arm] - 1, 0)
            self.renew()

    def renew(self) -> None:
        """Make `shifts` anew, after what was seen here or by other routers."""
        caution = [_CAUTION if left else 0.0 for left in self._cautious]
        if self._config.correction.enabled:
            self.shifts = (self.correction.shifts() + caution).tolist()
        else:
            self.shifts = [caution] * self._bins if any(caution) else None

    def _watch_arm(
        self, arm: int, bin: int, outcome: Outcome, predicted: float, in_flight: int, stretch: float
    ) -> None:
        assert outcome.tpot_s is not None
        took_s = outcome.tpot_s / stretch
        found = self._watches[arm].saw(bin, in_flight, took_s, outcome.acceptance_length, predicted)
        if found is None:
            return
        what, moved = found
        self.correction.forget(arm)
        self._cautious[arm] = _CAUTIOUS_ANSWERS
        name, times = self._policy.arms[arm], math.exp(moved)
        said = (
            f"a step takes {times:.2f} times as long" if what == "costs" else f"{times:.2f} times as much is accepted"
        )
        self._say("arm_changed", f"engine {name}: {said} as before; its history is forgotten", name, {what: moved})

    def _watch_inputs(self, bin: int) -> None:
        assert self._inputs is not None
        index = self._inputs.saw(bin)
        if index is None:
            return
        self._inputs = Inputs(self._config.drift, self._bins)
        self.correction.doubt(_KEPT)
        self._of_default.clear()
        for watch in self._watches:
            watch.drafts.clear()  # an arm may do worse on other requests, and be well
        self._say(
            "inputs_changed",
            f"other kinds of requests come than before (stability index {index:.2f})",
            None,
            {"stability_index": index},
        )

    def _watch_savings(self, arm: int, residual: float, expected: Sequence[float], own: bool) -> None:
        """Compare with what the default engine would have taken, as it was seen of late.

        `own`: the policy chose the arm itself. Others, and shadows, tell of the default engine alone.
        """
        if self._default is None or self.put_aside or self._config.correction.enabled:
            return
        if arm == self._default:
            self._of_default.append(residual)
        if not own or arm == self._default or len(self._of_default) < _FEWEST_SEEN:
            return
        of_default = math.log(expected[self._default]) + sum(self._of_default) / len(self._of_default)
        lost = self._savings.saw(of_default - math.log(expected[arm]) - residual)
        if lost is not None:
            self.put_aside, self._aside_at = True, self._seen
            name = self._policy.arms[self._default]
            self._say(
                "policy_loses",
                f"{self._policy.id} loses {lost:.0%} against {name} alone, which serves for now",
                name,
                {"lost": lost},
            )

    def _say(self, kind: str, text: str, arm: str | None = None, figures: Mapping[str, float] | None = None) -> None:
        self._tell(Event(time.time(), kind, text, arm, self._policy.id, figures or {}))
