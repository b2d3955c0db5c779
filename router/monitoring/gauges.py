"""State of the router's parts as metrics, read at scrape time: no cost per request."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from prometheus_client.metrics_core import Metric

from draftpick.engines.circuit_breaker import State
from draftpick.engines.http.client import redact_userinfo
from draftpick.engines.replicas import Replica
from draftpick.router.parts import Parts
from draftpick.router.telemetry.metrics import FAILING_PARTS, MetricFamily, Sample

_STATES: tuple[State, ...] = ("closed", "open", "half_open")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateMetric(MetricFamily):
    """`read`: its samples now; None where the router has no such part, and the page leaves it out."""

    read: Callable[["StateCollector"], Iterable[Sample] | None]


@dataclass(frozen=True, slots=True)
class StateCollector:
    """Collects the state of a router. `targets`: replicas by arm; `rejected`: whether its policy was rejected."""

    parts: Parts
    targets: Callable[[], Mapping[str, int]] = dict
    rejected: Callable[[], bool] = bool

    def collect(self) -> Iterator[Metric]:
        """Families of all metrics, as they are now."""
        for metric in METRICS:
            if (samples := metric.read(self)) is not None:
                yield metric.family(samples)

    def roles(self) -> dict[str, str]:
        """Ids of the policies in service, by `active` and `candidate`."""
        policies = self.parts.active_policies
        candidate = {} if policies.candidate is None else {"candidate": policies.candidate.id}
        return {"active": policies.policy.id} | candidate


def _by_label(values: Mapping[str, float]) -> Iterator[Sample]:
    return (((label,), value) for label, value in values.items())


def _by_arm(collector: StateCollector, value: Callable[[Sequence[Replica]], float]) -> Iterator[Sample]:
    return (((arm,), value(there)) for arm, there in collector.parts.replicas.by_arm.items())


def _failures(collector: StateCollector) -> Iterator[Sample]:
    failures = collector.parts.metrics.failures
    return _by_label({part: sum(n for (one, _), n in failures.items() if one == part) for part in FAILING_PARTS})


def _replicas(collector: StateCollector) -> Iterator[Sample]:
    for arm, there in collector.parts.replicas.by_arm.items():
        found = Counter(replica.breaker.state for replica in there)
        yield from (((arm, state), found[state]) for state in _STATES)


def _breakers_opened(collector: StateCollector) -> Iterator[Sample]:
    for arm, there in collector.parts.replicas.by_arm.items():
        yield from (((arm, redact_userinfo(replica.url)), replica.breaker.opened) for replica in there)


def _quarantine_states(collector: StateCollector) -> Iterator[Sample]:
    for arm, now in collector.parts.acceptance_monitor.state().items():
        yield from (((arm, state), state == now) for state in ("ok", "quarantined", "probed"))


def _policies_suspended(collector: StateCollector) -> Iterator[Sample]:
    learners = collector.parts.active_policies.learners()
    return (((role,), online.suspended) for role, (_, online) in zip(collector.roles(), learners, strict=True))


METRICS: tuple[StateMetric, ...] = (
    StateMetric(
        "draftpick_build_info",
        "gauge",
        "1, with the version that runs.",
        ("version",),
        read=lambda c: [((version("draftpick"),), 1)],
    ),
    StateMetric(
        "draftpick_ready",
        "gauge",
        "Whether an engine can take requests.",
        read=lambda c: [((), c.parts.replicas.reachable())],
    ),
    StateMetric(
        "draftpick_requests_in_flight",
        "gauge",
        "Requests that the router answers now.",
        on_ray=True,
        read=lambda c: [((), c.parts.admission.in_flight)],
    ),
    StateMetric(
        "draftpick_requests_queued",
        "gauge",
        "Requests that wait in the router for a place.",
        on_ray=True,
        read=lambda c: [((), c.parts.admission.queued)],
    ),
    StateMetric(
        "draftpick_queue_refused_total",
        "counter",
        "Requests that found the queue full, or were put out of it.",
        read=lambda c: [((), c.parts.admission.counts["refused"])],
    ),
    StateMetric(
        "draftpick_queue_timeouts_total",
        "counter",
        "Requests that waited too long in the queue.",
        read=lambda c: [((), c.parts.admission.counts["waited_too_long"])],
    ),
    StateMetric(
        "draftpick_fallbacks_total",
        "counter",
        "Decisions that fell back to a fixed engine, by what was missing.",
        ("reason",),
        on_ray=True,
        read=lambda c: _by_label(c.parts.metrics.fallbacks),
    ),
    StateMetric(
        "draftpick_internal_failures_total",
        "counter",
        "What failed inside and cost no request: features, learning, events that could not be written.",
        ("part",),
        read=_failures,
    ),
    StateMetric(
        "draftpick_continued_total",
        "counter",
        "Broken streams that another engine went on with.",
        read=lambda c: [((), c.parts.metrics.streams_resumed)],
    ),
    StateMetric(
        "draftpick_arm_requests_in_flight",
        "gauge",
        "This router's requests at each engine.",
        ("arm",),
        read=lambda c: _by_label(c.parts.replicas.in_flight()),
    ),
    StateMetric(
        "draftpick_arm_load_requests",
        "gauge",
        "Requests at each engine, whoever sent them.",
        ("arm",),
        on_ray=True,
        read=lambda c: _by_arm(c, lambda there: sum(r.total_in_flight for r in there)),
    ),
    StateMetric(
        "draftpick_arm_waiting_requests",
        "gauge",
        "Requests that wait at each engine, as it last reported.",
        ("arm",),
        on_ray=True,
        read=lambda c: _by_arm(c, lambda there: sum(r.report.waiting for r in there if r.report is not None)),
    ),
    StateMetric(
        "draftpick_arm_service_seconds",
        "gauge",
        "Moving mean of what a request takes, its wait left out.",
        ("arm",),
        read=lambda c: _by_label(c.parts.load.service_s),
    ),
    StateMetric(
        "draftpick_arm_stale",
        "gauge",
        "Whether an engine that reported its load has stopped to.",
        ("arm",),
        read=lambda c: (((arm,), arm in c.parts.load.staleness.suspects) for arm in c.parts.replicas.by_arm),
    ),
    StateMetric(
        "draftpick_arm_replicas_wanted",
        "gauge",
        "Replicas that the demand for each engine asks for.",
        ("arm",),
        read=lambda c: _by_label(c.targets()),
    ),
    StateMetric(
        "draftpick_arm_unmet_demand_ratio",
        "gauge",
        "How much more often an engine would be chosen if no engine had load: 0.3 is 30 % more.",
        ("arm",),
        read=lambda c: _by_label(c.parts.demand.unmet()),
    ),
    StateMetric(
        "draftpick_replicas",
        "gauge",
        "Replicas of each engine by the state of their breaker.",
        ("arm", "state"),
        on_ray=True,
        read=_replicas,
    ),
    StateMetric(
        "draftpick_breaker_opened_total",
        "counter",
        "How often a replica's breaker opened.",
        ("arm", "replica"),
        read=_breakers_opened,
    ),
    StateMetric(
        "draftpick_arm_drafts",
        "gauge",
        "1 for the present one of `ok`, `quarantined`, `probed`: are drafts lost.",
        ("arm", "state"),
        on_ray=True,
        read=_quarantine_states,
    ),
    StateMetric(
        "draftpick_quarantines_total",
        "counter",
        "How often an engine was quarantined for lost drafts.",
        read=lambda c: [((), c.parts.acceptance_monitor.quarantined)],
    ),
    StateMetric(
        "draftpick_policy_info",
        "gauge",
        "1, with the id of the policy that is `active`, or `candidate`.",
        ("policy", "role"),
        read=lambda c: (((policy, role), 1) for role, policy in c.roles().items()),
    ),
    StateMetric(
        "draftpick_candidate_share_ratio",
        "gauge",
        "Share of the requests that the candidate decides.",
        read=lambda c: [((), c.parts.active_policies.share)],
    ),
    StateMetric(
        "draftpick_explore_ratio",
        "gauge",
        "Share of a decision that may go to engines that are tried out.",
        read=lambda c: [((), c.parts.active_policies.explore)],
    ),
    StateMetric(
        "draftpick_policy_put_aside",
        "gauge",
        "Whether a policy loses against its default engine, which serves.",
        ("role",),
        read=_policies_suspended,
    ),
    StateMetric(
        "draftpick_policy_refused",
        "gauge",
        "Whether the policy that the configuration names was refused.",
        read=lambda c: [((), c.rejected())],
    ),
    StateMetric(
        "draftpick_records_written_total",
        "counter",
        "Records of attempts on the disk.",
        read=lambda c: [((), c.parts.records.written)] if c.parts.records is not None else None,
    ),
    StateMetric(
        "draftpick_records_dropped_total",
        "counter",
        "Records that the disk did not take, or not in time.",
        on_ray=True,
        read=lambda c: [((), c.parts.records.dropped)] if c.parts.records is not None else None,
    ),
)
"""All that are read here, in the order of the page: a new one is an entry."""
