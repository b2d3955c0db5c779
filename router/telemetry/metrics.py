"""Metrics of a router's requests, for Prometheus.

The counts are plain numbers; `Metrics.collect` converts them to metric families of prometheus_client at scrape time.
The counters of prometheus_client take a lock and several calls each; these take a few hundred nanoseconds per request
in total. Only the event loop updates them.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, product
from operator import attrgetter
from typing import Any, Literal, get_args

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from draftpick.engines.arms import drafter_of, engine_of, pool_arm
from draftpick.engines.pool.report import DrafterReport
from draftpick.router.errors import RequestError
from draftpick.router.online.events import Event
from draftpick.router.types import Attempt, Decision, Fault, Outcome, Placement, Reason, Status, ignores_forecast

STATUSES: tuple[Status, ...] = get_args(Status)
REASONS: tuple[Reason, ...] = get_args(Reason)
FAULTS: tuple[Fault, ...] = get_args(Fault)
EVENTS = (
    "arm_changed",
    "inputs_changed",
    "safe_mode_entered",
    "safe_mode_left",
    "policy_activated",
    "policy_rejected",
    "arm_quarantined",
    "arm_readmitted",
)
"""Kinds of events."""
FALLBACK_REASONS = ("stale_load", "no_context", "policy_error")
_DRAFTER_FIELDS = ("steps", "drafted", "accepted", "scored", "tokens")
FAILING_PARTS = (
    *("features", "connections", "attempts", "learning", "metrics", "recent", "records", "events"),
    *("addresses", "files", "shadow", "autoscaling", "load", "health", "models", "peers", "ray_metrics"),
)
"""Parts of the router whose errors are counted: observers of attempts, then background tasks."""


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """Description of a metric. `name`: complete, of a counter with `_total`; `buckets`: upper bounds.

    `on_ray`: whether it is also on Ray's own metrics page.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    on_ray: bool = False

    def family(self, samples: Iterable["Sample"]) -> Metric:
        """Convert samples, each with the values of its labels, to a metric family."""
        if self.kind == "histogram":
            return self._histograms(samples)
        kind = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        family = kind(self.name, self.help, labels=self.labels)
        for labels, value in samples:
            family.add_metric(labels, value)
        return family

    def _histograms(self, samples: Iterable["Sample"]) -> Metric:
        family = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        bounds = [*map(floatToGoString, self.buckets), "+Inf"]
        for labels, series in samples:
            family.add_metric(labels, list(zip(bounds, accumulate(series.counts), strict=True)), series.total)
        return family


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedMetric(MetricFamily):
    """`read`: returns its samples from `Metrics`."""

    read: Callable[["Metrics"], Iterable["Sample"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerMetric(MetricFamily):
    """A `field` of each answer's `Outcome`, by arm, summed by a counter or observed by a histogram unless None."""

    field: str
    labels: tuple[str, ...] = ("arm",)

    def read(self, metrics: "Metrics") -> Iterable["Sample"]:
        """Samples by arm."""
        return (((name,), arm.answers[self.name]) for name, arm in metrics.arms.items())


class Series:
    """State of one histogram: counts by bucket, and the sum. Upper bounds are inclusive."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0


Sample = tuple[Sequence[str], Any]
"""The values of a metric's labels, and a number or, for a histogram, a `Series`."""


def _by_factor(first: float, factor: float, n: int) -> tuple[float, ...]:
    """Upper bounds of `n` buckets, each `factor` times the one before, to three digits."""
    return tuple(float(f"{first * factor**i:.3g}") for i in range(n))


# Most buckets double, from the times of a small model to those of a long prompt or answer. Routing mostly improves TPOT
# by a tenth to a half, so its buckets are a quarter apart.
_OVERHEAD_S = (*_by_factor(0.000125, 2, 12), 1.0, 4.0, 16.0, 64.0)
_TTFT_S = _by_factor(0.005, 2, 16)
_TPOT_S = _by_factor(0.001, 1.25, 25)
_E2E_S = _by_factor(0.05, 2, 16)
_QUEUE_S = _by_factor(0.001, 4, 9)
_LENGTHS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 12.0)
_RATIOS = (0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.11, 1.25, 1.5, 2.0, 4.0)

METRICS: tuple[CountedMetric | AnswerMetric, ...] = (
    CountedMetric(
        "draftpick_requests_total",
        "counter",
        "Requests with a chosen engine, by engine and status of the last attempt.",
        ("arm", "status"),
        on_ray=True,
        read=lambda m: m.requests.items(),
    ),
    CountedMetric(
        "draftpick_attempts_total",
        "counter",
        "Attempts for clients, by engine and status; a request has several if engines fail.",
        ("arm", "status"),
        on_ray=True,
        read=lambda m: (((name, status), n) for name, arm in m.arms.items() for status, n in arm.attempts.items()),
    ),
    CountedMetric(
        "draftpick_attempt_faults_total",
        "counter",
        "Attempts for clients that were not answered, by engine and by whose fault that was.",
        ("arm", "fault"),
        read=lambda m: (((name, fault), n) for name, arm in m.arms.items() for fault, n in arm.faults.items()),
    ),
    CountedMetric(
        "draftpick_decisions_total",
        "counter",
        "Decisions that led to an attempt, by engine and reason.",
        ("arm", "reason"),
        on_ray=True,
        read=lambda m: (((name, why), n) for name, arm in m.arms.items() for why, n in arm.decisions.items()),
    ),
    CountedMetric(
        "draftpick_explored_total",
        "counter",
        "Decisions with exploration that chose another engine than the most probable one.",
        ("arm",),
        read=lambda m: (((name,), arm.explored) for name, arm in m.arms.items()),
    ),
    CountedMetric(
        "draftpick_shadow_attempts_total",
        "counter",
        "Shadow requests: finished requests repeated on other engines, without a waiting client.",
        ("arm", "status"),
        read=lambda m: (((name, status), n) for name, arm in m.arms.items() for status, n in arm.shadows.items()),
    ),
    CountedMetric(
        "draftpick_errors_total",
        "counter",
        "Errors returned by the router itself, by HTTP status and code.",
        ("code", "status"),
        on_ray=True,
        read=lambda m: m.errors.items(),
    ),
    CountedMetric(
        "draftpick_events_total",
        "counter",
        "Events of drift, quarantine and policies, by kind.",
        ("kind",),
        on_ray=True,
        read=lambda m: (((kind,), n) for kind, n in m.events.items()),
    ),
    AnswerMetric(
        "draftpick_prompt_tokens_total",
        "counter",
        "Prompt tokens of answered requests, as counted by the engines.",
        field="prompt_tokens",
        on_ray=True,
    ),
    AnswerMetric(
        "draftpick_output_tokens_total",
        "counter",
        "Output tokens of answered requests, as counted by the engines.",
        field="output_tokens",
        on_ray=True,
    ),
    CountedMetric(
        "draftpick_decoding_seconds_total",
        "counter",
        "Decoding time, first to last token, of answers whose engine a policy chose by predicted times.",
        ("arm",),
        on_ray=True,
        read=lambda m: (((name,), arm.decoding_s) for name, arm in m.arms.items()),
    ),
    CountedMetric(
        "draftpick_decoding_baseline_seconds_total",
        "counter",
        "Predicted decoding time of these answers on the engine without a drafter; for its own answers, measured.",
        ("arm",),
        on_ray=True,
        read=lambda m: (((name,), arm.decoding_baseline_s) for name, arm in m.arms.items()),
    ),
    CountedMetric(
        "draftpick_router_overhead_seconds",
        "histogram",
        "Time in the router: from a request's first byte until its first attempt is sent, including queueing.",
        (),
        _OVERHEAD_S,
        read=lambda m: [((), m.overhead)],
    ),
    AnswerMetric(
        "draftpick_ttft_seconds",
        "histogram",
        "TTFT: from a request's first byte to the first content forwarded.",
        buckets=_TTFT_S,
        field="ttft_s",
        on_ray=True,
    ),
    AnswerMetric(
        "draftpick_tpot_seconds",
        "histogram",
        "TPOT: seconds per output token after the first.",
        buckets=_TPOT_S,
        field="tpot_s",
        on_ray=True,
    ),
    AnswerMetric(
        "draftpick_e2e_seconds",
        "histogram",
        "End-to-end latency: from a request's first byte to the last byte of its answer.",
        buckets=_E2E_S,
        field="e2e_s",
        on_ray=True,
    ),
    AnswerMetric(
        "draftpick_engine_queue_seconds",
        "histogram",
        "Queueing time at the engine, as reported by the engine; part of TTFT.",
        buckets=_QUEUE_S,
        field="queue_s",
    ),
    AnswerMetric(
        "draftpick_acceptance_length_tokens",
        "histogram",
        "Tokens per decoding step of an answer, including the bonus token.",
        buckets=_LENGTHS,
        field="acceptance_length",
        on_ray=True,
    ),
    CountedMetric(
        "draftpick_tpot_prediction_ratio",
        "histogram",
        "Measured TPOT over predicted TPOT; above 1: slower than predicted.",
        ("arm",),
        _RATIOS,
        on_ray=True,
        read=lambda m: (((name,), arm.predictions) for name, arm in m.arms.items()),
    ),
    CountedMetric(
        "draftpick_drafter_steps_total",
        "counter",
        "Decoding steps of a pool that verified this drafter's tokens; of `none`: steps without any.",
        ("arm",),
        on_ray=True,
        read=lambda m: _of_drafters(m, "steps"),
    ),
    CountedMetric(
        "draftpick_drafter_drafted_tokens_total",
        "counter",
        "Tokens of this drafter of a pool that were verified.",
        ("arm",),
        read=lambda m: _of_drafters(m, "drafted"),
    ),
    CountedMetric(
        "draftpick_drafter_accepted_tokens_total",
        "counter",
        "Tokens of this drafter of a pool that were accepted.",
        ("arm",),
        read=lambda m: _of_drafters(m, "accepted"),
    ),
    CountedMetric(
        "draftpick_drafter_scored_steps_total",
        "counter",
        "Positions of answers at which a pool compared this drafter's draft, verified or not, with what came.",
        ("arm",),
        read=lambda m: _of_drafters(m, "scored"),
    ),
    CountedMetric(
        "draftpick_drafter_scored_tokens_total",
        "counter",
        "Tokens that this drafter of a pool would have had per step, over those positions; over them: its tau.",
        ("arm",),
        on_ray=True,
        read=lambda m: _of_drafters(m, "tokens"),
    ),
    CountedMetric(
        "draftpick_prediction_tokens_total",
        "counter",
        "Tokens of clients' predictions, by engine that drafted from them: accepted are in its answer, others not.",
        ("arm", "result"),
        read=lambda m: m.prediction_tokens.items(),
    ),
    CountedMetric(
        "draftpick_session_turns_total",
        "counter",
        "Answered turns of sessions: at the replica of the last turn (kept), at another one (moved), at another one "
        "since that was gone (fresh), or first ones (new).",
        ("placement",),
        read=lambda m: (((placement,), n) for placement, n in m.session_turns.items()),
    ),
    CountedMetric(
        "draftpick_ignored_forecasts_total",
        "counter",
        "Forecasts of drafters that an engine ignored (its answer reports none) or rejected: it lacks our plugin.",
        ("engine",),
        on_ray=True,
        read=lambda m: (((engine,), n) for engine, n in m.ignored_forecasts.items()),
    ),
)
"""All metrics of this module, in the order of the page; a new one is an entry."""


def _of_drafters(metrics: "Metrics", field: str) -> Iterable[Sample]:
    """Samples of the arms of pools."""
    return (((name,), found[field]) for name, found in metrics.drafters.items())


_ANSWERS = tuple(metric for metric in METRICS if isinstance(metric, AnswerMetric))
_SUMS = tuple(metric for metric in _ANSWERS if metric.kind == "counter")
_HISTOGRAMS = tuple(metric for metric in _ANSWERS if metric.kind == "histogram")
_read_sums = attrgetter(*(metric.field for metric in _SUMS))
_read_observations = attrgetter(*(metric.field for metric in _HISTOGRAMS))


class _ArmCounters:
    """Counts of one arm. `sums`, `series`: of the answer metrics, in the order of `METRICS`."""

    __slots__ = (
        "attempts",
        "decisions",
        "decoding_baseline_s",
        "decoding_s",
        "explored",
        "faults",
        "predictions",
        "series",
        "shadows",
        "sums",
    )

    def __init__(self) -> None:
        self.attempts: dict[Status, int] = dict.fromkeys(STATUSES, 0)
        self.shadows: dict[Status, int] = dict.fromkeys(STATUSES, 0)
        self.faults: dict[Fault, int] = dict.fromkeys(FAULTS, 0)
        self.decisions: dict[Reason, int] = dict.fromkeys(REASONS, 0)
        self.explored: int = 0
        self.decoding_s: float = 0.0
        self.decoding_baseline_s: float = 0.0
        self.predictions: Series = Series(_RATIOS)
        self.sums = [0.0] * len(_SUMS)
        self.series = [Series(metric.buckets) for metric in _HISTOGRAMS]

    @property
    def answers(self) -> dict[str, Any]:
        """Value of each `AnswerMetric`, by name."""
        sums = zip(_SUMS, self.sums, strict=True)
        return {metric.name: value for metric, value in sums} | {
            metric.name: series for metric, series in zip(_HISTOGRAMS, self.series, strict=True)
        }


class Metrics:
    """Counts of one router.

    `requests`: by arm and status of their last attempt; `errors`: by code and HTTP status; `failures`: by part of the
    router and error. `drafters`: sums over the reports of pools, by arm. `ignored_forecasts`: by pool.
    """

    def __init__(self, arms: Iterable[str], baseline: str) -> None:
        """`baseline`: the engine that savings are measured against."""
        self.arms: dict[str, _ArmCounters] = {arm: _ArmCounters() for arm in arms}
        self._baseline = baseline
        self.requests: Counter[tuple[str, Status]] = Counter(dict.fromkeys(product(self.arms, STATUSES), 0))
        self.overhead: Series = Series(_OVERHEAD_S)
        self.errors: Counter[tuple[str, str]] = Counter()
        self.events: Counter[str] = Counter(dict.fromkeys(EVENTS, 0))
        self.fallbacks: Counter[str] = Counter(dict.fromkeys(FALLBACK_REASONS, 0))
        self.failures: Counter[tuple[str, str]] = Counter()
        self.streams_resumed = 0
        self.drafters: dict[str, dict[str, float]] = {
            arm: dict.fromkeys(_DRAFTER_FIELDS, 0) for arm in self.arms if drafter_of(arm) is not None
        }
        self.prediction_tokens: Counter[tuple[str, str]] = Counter()
        self.session_turns: dict[Placement, int] = dict.fromkeys(get_args(Placement), 0)
        self.ignored_forecasts: Counter[str] = Counter(dict.fromkeys(map(engine_of, self.drafters), 0))

    def attempts(self) -> dict[Status, int]:
        """Attempts by status, including shadows."""
        return {s: sum(arm.attempts[s] + arm.shadows[s] for arm in self.arms.values()) for s in STATUSES}

    def counts(self) -> dict[str, int]:
        """The counts shown by `/ready`."""
        found = {f"attempts_{status}": n for status, n in self.attempts().items()}
        found |= {f"fallback_{reason}": n for reason, n in self.fallbacks.items()}
        found |= {f"failed_{part}_{error}": n for (part, error), n in self.failures.items()}
        return {name: n for name, n in {**found, "streams_resumed": self.streams_resumed}.items() if n}

    def on_attempt_end(self, attempt: Attempt) -> None:
        """Count an attempt."""
        number, decision, outcome = attempt.number, attempt.decision, attempt.outcome
        arm, status = self.arms[decision.arm], outcome.status
        arm.decisions[decision.reason] += 1
        if decision.reason == "shadow":
            arm.shadows[status] += 1
            return
        arm.attempts[status] += 1
        if outcome.fault is not None:
            arm.faults[outcome.fault] += 1
        if number == 1 and outcome.overhead_s is not None:
            self.overhead.counts[bisect_left(_OVERHEAD_S, outcome.overhead_s)] += 1
            self.overhead.total += outcome.overhead_s
        if decision.exploration_rate and decision.reason == "policy":
            arm.explored += decision.propensity < max(decision.probabilities.values())
        if status == "ok":
            self._observe_answer(arm, decision, outcome)
            if attempt.turn is not None:
                self.session_turns[attempt.turn.placement] += 1
            if outcome.prediction is not None:
                self.prediction_tokens[decision.arm, "accepted"] += outcome.prediction.accepted
                self.prediction_tokens[decision.arm, "rejected"] += outcome.prediction.rejected
            if outcome.drafters is not None:
                self._observe_drafters(engine_of(decision.arm), outcome.drafters)
            elif decision.forecast is not None and ignores_forecast(attempt):
                self.ignored_forecasts[engine_of(decision.arm)] += 1

    def _observe_drafters(self, engine: str, drafters: Mapping[str, DrafterReport]) -> None:
        for name, report in drafters.items():
            if (found := self.drafters.get(pool_arm(engine, name))) is not None:
                for field in _DRAFTER_FIELDS[:-1]:
                    found[field] += getattr(report, field)
                found["tokens"] += report.scored * (report.tau or 0.0)

    def _observe_answer(self, arm: _ArmCounters, decision: Decision, outcome: Outcome) -> None:
        tpot_s = outcome.tpot_s
        if decision.reason == "resumed":  # the first token came from another engine
            outcome = replace(outcome, ttft_s=None, tpot_s=None)
        elif tpot_s is not None and tpot_s <= 0:  # by an engine's own clock, of a whole answer
            outcome = replace(outcome, tpot_s=None)
        elif tpot_s is not None and decision.predicted_tpot_s is not None and decision.reason == "policy":
            ratio = self._compare_to_baseline(arm, decision, outcome, tpot_s)
            arm.predictions.counts[bisect_left(_RATIOS, ratio)] += 1
            arm.predictions.total += ratio
        for i, value in enumerate(_read_sums(outcome)):
            if value:
                arm.sums[i] += value
        for series, value in zip(arm.series, _read_observations(outcome), strict=True):
            if value is not None:
                series.counts[bisect_left(series.bounds, value)] += 1
                series.total += value

    def _compare_to_baseline(self, arm: _ArmCounters, decision: Decision, outcome: Outcome, tpot_s: float) -> float:
        """Return measured over predicted TPOT; adds the predicted time on the baseline engine."""
        predicted_s, shift = decision.predicted_tpot_s, decision.residual
        assert predicted_s is not None
        arms, tokens = list(decision.probabilities), (outcome.output_tokens or 1) - 1
        at = arms.index(decision.arm)
        expected_s = predicted_s[at] * (1.0 if shift is None else math.exp(shift[at]))
        measured_s = plain_s = tpot_s * tokens
        if self._baseline in decision.probabilities and decision.arm != self._baseline:
            at = arms.index(self._baseline)
            plain_s = tokens * predicted_s[at] * (1.0 if shift is None else math.exp(shift[at]))
        arm.decoding_s += measured_s
        arm.decoding_baseline_s += plain_s
        return tpot_s / expected_s

    def on_event(self, event: Event) -> None:
        """Count an event."""
        self.events[event.kind] += 1

    def count_error(self, error: RequestError) -> None:
        """Count an error returned to a client."""
        self.errors[error.code or error.type, str(error.status)] += 1

    def collect(self) -> Iterator[Metric]:
        """Current families of all metrics."""
        for metric in METRICS:
            yield metric.family(metric.read(self))
