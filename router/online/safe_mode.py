"""Safe mode: while routing is measured slower than the best engine alone, that engine serves; routing is only probed.

It begins when the lower bound of the loss of routing against some engine is above 0 (`ArmComparison.losses`). In it, a
share of the requests is still routed; their times against the predicted ones of the safe engine, weighted by 1 /
propensity, are the estimate of the loss that ends it, once its upper bound is below a small tolerance.

A pool is one engine, whatever arm of it was chosen: its drafters share its steps, so that its answers do not tell apart
what each would have taken. It is predicted to take the time of its fastest drafter. Where it is the safe engine it
chooses its drafters itself, without a forecast.
"""

import math
from collections import deque
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from draftpick.engines.arms import default_arm, drafter_of, engine_of
from draftpick.engines.pool.forecast import Forecast
from draftpick.router.config.sections import SafeModeConfig
from draftpick.router.online.arm_comparison import ArmComparison, Floats
from draftpick.router.types import Decision

PREFIX = "safe_mode:"
"""Decisions in safe mode have this policy id, followed by the engine."""
_CHECK_EVERY = 4
_MIN_SHARE = 0.4
"""Share of the window that must be full for a verdict."""
_ENTER_ERRORS, _LEAVE_ERRORS = 2.8, 1.3
"""Standard errors of the two bounds: checks are many, and there are several arms."""
_TOLERANCE = 0.01
_DEVIATION = 0.25
"""Least standard deviation assumed of log (time routed / time of the safe arm)."""


class SafeMode:
    """The state of one policy. `engines`: those of its arms; `arm`: index of the safe one, None while routing serves;
    `loss` and `low`: log loss of routing against the best engine, and its lower bound, as last estimated; `requests`:
    answered in safe mode."""

    def __init__(self, config: SafeModeConfig, arms: tuple[str, ...]) -> None:
        self._config, self._arms = config, arms
        self.engines = tuple(dict.fromkeys(map(engine_of, arms)))
        self._places = [self.engines.index(engine_of(arm)) for arm in arms]
        self.comparison = ArmComparison(len(self.engines), config.window)
        self._probes: deque[tuple[float, float, float]] = deque(maxlen=2 * config.window)
        self.arm: int | None = None
        self.loss, self.low, self.requests = 0.0, -math.inf, 0

    def decide(self, routed: Decision, eligible: Collection[str], u: float) -> Decision:
        """The decision in safe mode, from one of the policy and a number drawn uniformly from [0, 1).

        The policy keeps `probe_rate` of the requests, and all while the safe engine is not eligible.
        """
        if self.arm is None:
            return routed
        arms = [arm for arm in self._arms if arm in eligible and engine_of(arm) == self.engines[self.arm]]
        if not arms:
            return routed
        usual = default_arm(self.engines[self.arm], arms)
        name, share = usual if usual in arms else arms[0], self._config.probe_rate
        probabilities = {one: share * p for one, p in routed.probabilities.items()}
        probabilities[name] += 1.0 - share
        made = replace(routed, probabilities=probabilities, policy=PREFIX + self.engines[self.arm])
        if u < share:
            return replace(made, propensity=probabilities[routed.arm])
        forecast = None if drafter_of(name) is None else Forecast()
        return replace(made, arm=name, propensity=probabilities[name], forecast=forecast)

    def place(self, arm: int) -> int:
        """Index of the engine of an arm."""
        return self._places[arm]

    def by_engine(self, arm: int, residual: float, predicted_s: Floats) -> tuple[float, Floats]:
        """(residual, predictions [engines]) by engine, of an answer of an arm and predictions [arms]."""
        if len(self.engines) == len(self._arms):
            return residual, predicted_s
        fastest = np.full(len(self.engines), np.inf)
        np.minimum.at(fastest, self._places, predicted_s)
        return residual + math.log(predicted_s[arm] / fastest[self._places[arm]]), fastest

    def arm_of(self, engine: int) -> int:
        """Index of the arm that stands for an engine: of a pool, the one that drafts nothing at first."""
        first = self._places.index(engine)
        usual = default_arm(self.engines[engine], self._arms)
        return self._arms.index(usual) if usual in self._arms else first

    def observe(self, decision: Decision, arm: int, residual: float, predicted_s: Floats, tokens: float) -> bool:
        """Learn from an answer that the policy routed, or that was decided in safe mode; True if the state changes.

        `arm`: index of the decision's; `residual`: log(measured / predicted) of its time per token, and `predicted_s`:
        without load and corrections, both `by_engine`; `tokens`: of the answer, times the weight of its API key.
        """
        arm = self._places[arm]
        if decision.policy.startswith(PREFIX):
            self.requests += 1
            return self.arm is not None and self._observe_probe(decision, arm, residual, predicted_s)
        if self.arm is not None or decision.propensity < max(decision.probabilities.values()):
            return False  # an explored arm is not what routing prefers
        self.comparison.add_request(arm, residual, predicted_s, tokens)
        return self._should_enter()

    def reset_arm(self, arm: int) -> None:
        """Forget what the engine of an arm has shown, after a change of it."""
        self.comparison.reset_arm(self._places[arm])
        self._probes.clear()

    def _should_enter(self) -> bool:
        seen = self.comparison.requests
        if seen % _CHECK_EVERY or seen < _MIN_SHARE * self.comparison.window:
            return False
        losses, errors = self.comparison.losses()
        lows = losses - _ENTER_ERRORS * errors
        worst = int(lows.argmax())
        self.loss, self.low = float(losses[worst]), float(lows[worst])
        if self.low <= 0:
            return False
        self.arm = worst
        self._probes.clear()
        return True

    def _observe_probe(self, decision: Decision, arm: int, residual: float, predicted_s: Floats) -> bool:
        assert self.arm is not None
        shares = np.zeros(len(self.engines))
        np.add.at(shares, self._places, [decision.probabilities[name] for name in self._arms])
        routed = shares.copy()
        routed[self.arm] -= 1.0 - self._config.probe_rate
        preferred, level = int(routed.argmax()), self.comparison.level(self.arm)
        if level is None:
            return False
        if preferred == self.arm:
            self._probes.append((0.0, 0.0, 0.0))
        else:
            lost = math.log(predicted_s[arm] / predicted_s[self.arm]) + residual - level[0]
            self._probes.append((1.0 / shares[preferred], float(arm == preferred), lost))
        return self._should_leave(level[1])

    def _should_leave(self, level_variance: float) -> bool:
        n = len(self._probes)
        if n % _CHECK_EVERY or n < _MIN_SHARE * self.comparison.window:
            return False
        weights, probed, lost = np.asarray(self._probes).T
        mean = float((weights * probed) @ lost) / n
        size = max(float(probed @ np.square(lost)) / max(probed.sum(), 1.0), _DEVIATION**2)
        error = math.sqrt(size * weights.sum() / n**2 + level_variance * float((weights > 0).mean()) ** 2)
        self.loss, self.low = mean, mean - _LEAVE_ERRORS * error
        if mean + _LEAVE_ERRORS * error >= _TOLERANCE:
            return False
        self.arm = None
        self.comparison.clear_requests()
        return True
