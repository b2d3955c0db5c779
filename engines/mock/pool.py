"""The drafters of a mock pool: one request is drafted by whichever pays best, step by step, and reports on all."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from draftpick.engines.arms import NONE
from draftpick.engines.mock.acceptance import acceptance_rate
from draftpick.engines.mock.spec import MockRequest, MockSpec
from draftpick.engines.pool.forecast import XARG, Forecast
from draftpick.engines.pool.report import DrafterReport

_PRIOR_TAU, _PRIOR_WEIGHT = 1.5, 2.0
"""What the pool assumes of a drafter without a forecast, and the weight of that in steps."""


@dataclass(slots=True)
class PoolDrafts:
    """The drafts of one request. Every drafter is scored at every step, the chosen one is verified.

    `rates`: probability that a drafted token is accepted, `lengths`: tokens of a draft, by drafter.
    """

    spec: MockSpec
    rates: Mapping[str, float]
    forecast: Forecast
    rng: random.Random
    reports: dict[str, DrafterReport]
    tokens: dict[str, int] = field(default_factory=dict)
    chosen: str = NONE

    @classmethod
    def start(cls, request: MockRequest, spec: MockSpec, rng: random.Random) -> Self | None:
        """Begin with the request's forecast, if it has one; None for an engine that is no pool."""
        if not spec.drafters:
            return None
        text, rates = "\n".join(request.prompts), {NONE: 0.0}
        for name, drafter in spec.drafters.items():
            rates[name] = acceptance_rate(drafter.tau(text, request.mock_class), drafter.num_speculative_tokens)
        forecast = Forecast.from_json((request.vllm_xargs or {}).get(XARG)) or Forecast()
        return cls(spec, rates, forecast, rng, {name: DrafterReport() for name in rates}, dict.fromkeys(rates, 0))

    def choose(self, step_s: float) -> tuple[int, float]:
        """Choose the next step's drafter; returns its number of drafted tokens, and its additional seconds.

        `step_s`: seconds of a step without drafts.
        """
        only = self.forecast.only
        names = [name for name in self.rates if only in (None, name)] or [NONE]
        self.chosen = max(names, key=lambda name: self._tau(name) / max(step_s + self.spec.drafter_s(name), 1e-9))
        return self.spec.draft_length(self.chosen), self.spec.drafter_s(self.chosen)

    def _tau(self, name: str) -> float:
        """The acceptance length that the forecast and the steps so far give a drafter."""
        if name == NONE:
            return 1.0
        expected = self.forecast.tau.get(name)
        weight, expected = (_PRIOR_WEIGHT, _PRIOR_TAU) if expected is None else (self.forecast.weight, expected)
        return (weight * expected + self.tokens[name]) / max(weight + self.reports[name].scored, 1e-9)

    def accept(self) -> int:
        """Score all drafters on one step; returns the tokens accepted of the chosen one."""
        accepted = {name: self._draw(rate, self.spec.draft_length(name)) for name, rate in self.rates.items()}
        for name, report in self.reports.items():
            report.scored += 1
            self.tokens[name] += 1 + accepted[name]
            report.tau = self.tokens[name] / report.scored
        report = self.reports[self.chosen]
        report.steps += 1
        report.drafted += self.spec.draft_length(self.chosen)
        report.accepted += accepted[self.chosen]
        return accepted[self.chosen]

    def _draw(self, rate: float, length: int) -> int:
        accepted = 0
        while accepted < length and self.rng.random() < rate:
            accepted += 1
        return accepted

    def to_fields(self) -> dict[str, Any]:
        """The report by drafter, as in an answer."""
        return {name: report.to_fields() for name, report in self.reports.items()}
