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
    """`read` returns the current samples; None omits the metric, if the router has no such part."""

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


def _by_engine(collector: StateCollector, value: Callable[[Sequence[Replica]], float]) -> Iterator[Sample]:
    return (((engine,), value(there)) for engine, there in collector.parts.replicas.by_engine.items())


def _failures(collector: StateCollector) -> Iterator[Sample]:
    found = dict.fromkeys(FAILING_PARTS, 0)
    for (part, _), n in collector.parts.metrics.failures.items():
        found[part] = found.get(part, 0) + n
    return _by_label(found)


def _replicas(collector: StateCollector) -> Iterator[Sample]:
    for engine, there in collector.parts.replicas.by_engine.items():
        found = Counter(replica.breaker.state for replica in there)
        yield from (((engine, state), found[state]) for state in _STATES)


def _breakers_opened(collector: StateCollector) -> Iterator[Sample]:
    for engine, there in collector.parts.replicas.by_engine.items():
        yield from (((engine, redact_userinfo(replica.url)), replica.breaker.opened) for replica in there)


def _quarantine_states(collector: StateCollector) -> Iterator[Sample]:
    for arm, now in collector.parts.acceptance_monitor.state().items():
        yield from (((arm, state), state == now) for state in ("ok", "quarantined", "probed"))


def _safe_modes(collector: StateCollector) -> Iterator[Sample]:
    learners = collector.parts.active_policies.learners()
    return (
        ((role,), online.safe_mode.arm is not None)
        for role, (_, online) in zip(collector.roles(), learners, strict=True)
    )


def _of_leases(collector: StateCollector, samples: Iterable[Sample]) -> Iterable[Sample] | None:
    """The samples, if the router gives leases."""
    return samples if collector.parts.config.leases.enabled else None


METRICS: tuple[StateMetric, ...] = (
    StateMetric(
        "draftpick_build_info",
        "gauge",
        "1, labelled with the running version.",
        ("version",),
        read=lambda c: [((version("draftpick"),), 1)],
    ),
    StateMetric(
        "draftpick_ready",
        "gauge",
        "1 if an engine can take requests.",
        read=lambda c: [((), c.parts.replicas.reachable())],
    ),
    StateMetric(
        "draftpick_requests_in_flight",
        "gauge",
        "Requests in flight in the router.",
        on_ray=True,
        read=lambda c: [((), c.parts.admission.in_flight)],
    ),
    StateMetric(
        "draftpick_requests_queued",
        "gauge",
        "Requests in the router's queue.",
        on_ray=True,
        read=lambda c: [((), c.parts.admission.queued)],
    ),
    StateMetric(
        "draftpick_queue_rejected_total",
        "counter",
        "Requests rejected because the queue was full, or shed from it.",
        read=lambda c: [((), c.parts.admission.counts["refused"])],
    ),
    StateMetric(
        "draftpick_queue_timeouts_total",
        "counter",
        "Requests that timed out in the queue.",
        read=lambda c: [((), c.parts.admission.counts["waited_too_long"])],
    ),
    StateMetric(
        "draftpick_fallbacks_total",
        "counter",
        "Decisions that fell back to a fixed engine, by reason.",
        ("reason",),
        on_ray=True,
        read=lambda c: _by_label(c.parts.metrics.fallbacks),
    ),
    StateMetric(
        "draftpick_internal_failures_total",
        "counter",
        "Internal failures without a failed request: features, observers of attempts, attempts lost to them, events.",
        ("part",),
        read=_failures,
    ),
    StateMetric(
        "draftpick_streams_resumed_total",
        "counter",
        "Broken streams resumed on another engine.",
        read=lambda c: [((), c.parts.metrics.streams_resumed)],
    ),
    StateMetric(
        "draftpick_arm_requests_in_flight",
        "gauge",
        "This router's requests in flight by engine.",
        ("arm",),
        read=lambda c: _by_label(c.parts.replicas.in_flight()),
    ),
    StateMetric(
        "draftpick_arm_load_requests",
        "gauge",
        "Requests of all clients by engine.",
        ("arm",),
        on_ray=True,
        read=lambda c: _by_engine(c, lambda there: sum(r.total_in_flight for r in there)),
    ),
    StateMetric(
        "draftpick_arm_waiting_requests",
        "gauge",
        "Waiting requests by engine, as last reported.",
        ("arm",),
        on_ray=True,
        read=lambda c: _by_engine(c, lambda there: sum(r.report.waiting for r in there if r.report is not None)),
    ),
    StateMetric(
        "draftpick_arm_service_seconds",
        "gauge",
        "Moving mean of a request's service time, without waiting.",
        ("arm",),
        read=lambda c: _by_label(c.parts.load.service_s),
    ),
    StateMetric(
        "draftpick_arm_report_stale",
        "gauge",
        "1 if the engine's load reports have stopped.",
        ("arm",),
        read=lambda c: (((arm,), arm in c.parts.load.staleness.suspects) for arm in c.parts.replicas.by_arm),
    ),
    StateMetric(
        "draftpick_arm_replicas_wanted",
        "gauge",
        "Target replicas by engine.",
        ("arm",),
        read=lambda c: _by_label(c.targets()),
    ),
    StateMetric(
        "draftpick_arm_unmet_demand_ratio",
        "gauge",
        "Relative excess of unloaded choices of an engine over actual ones: 0.3 is 30 % more.",
        ("arm",),
        read=lambda c: _by_label(c.parts.demand.unmet()),
    ),
    StateMetric(
        "draftpick_replicas",
        "gauge",
        "Replicas by engine and breaker state.",
        ("arm", "state"),
        on_ray=True,
        read=_replicas,
    ),
    StateMetric(
        "draftpick_breaker_opened_total",
        "counter",
        "Openings of a replica's breaker.",
        ("arm", "replica"),
        read=_breakers_opened,
    ),
    StateMetric(
        "draftpick_arm_quarantine_state",
        "gauge",
        "1 for the current state of the drafter: `ok`, `quarantined`, `probed`.",
        ("arm", "state"),
        on_ray=True,
        read=_quarantine_states,
    ),
    StateMetric(
        "draftpick_quarantines_total",
        "counter",
        "Quarantines of an engine for a collapsed acceptance.",
        read=lambda c: [((), c.parts.acceptance_monitor.quarantined)],
    ),
    StateMetric(
        "draftpick_policy_info",
        "gauge",
        "1, labelled with the id of the `active` policy and of the `candidate`.",
        ("policy", "role"),
        read=lambda c: (((policy, role), 1) for role, policy in c.roles().items()),
    ),
    StateMetric(
        "draftpick_candidate_share_ratio",
        "gauge",
        "Share of requests decided by the candidate.",
        read=lambda c: [((), c.parts.active_policies.share)],
    ),
    StateMetric(
        "draftpick_explore_ratio",
        "gauge",
        "Exploration rate.",
        read=lambda c: [((), c.parts.active_policies.explore)],
    ),
    StateMetric(
        "draftpick_safe_mode",
        "gauge",
        "1 while the best single engine serves, since the policy was measured slower.",
        ("role",),
        read=_safe_modes,
    ),
    StateMetric(
        "draftpick_safe_mode_requests_total",
        "counter",
        "Requests answered in safe mode.",
        read=lambda c: [((), sum(online.safe_mode.requests for _, online in c.parts.active_policies.learners()))],
    ),
    StateMetric(
        "draftpick_policy_rejected",
        "gauge",
        "1 if the configured policy was rejected.",
        read=lambda c: [((), c.rejected())],
    ),
    StateMetric(
        "draftpick_records_written_total",
        "counter",
        "Records of attempts written to disk.",
        read=lambda c: [((), c.parts.records.written)] if c.parts.records is not None else None,
    ),
    StateMetric(
        "draftpick_records_dropped_total",
        "counter",
        "Records dropped, since the disk failed or was too slow.",
        on_ray=True,
        read=lambda c: [((), c.parts.records.dropped)] if c.parts.records is not None else None,
    ),
    StateMetric(
        "draftpick_leases_open",
        "gauge",
        "Requests that others send, with a lease of the router, and whose outcome is awaited.",
        read=lambda c: _of_leases(c, [((), len(c.parts.leases))]),
    ),
    StateMetric(
        "draftpick_leases_total",
        "counter",
        "Leases by their end: an outcome was told; it expired; a fallback answered; the router stopped.",
        ("end",),
        read=lambda c: _of_leases(c, _by_label(c.parts.leases.ends)),
    ),
    StateMetric(
        "draftpick_picks_total",
        "counter",
        "Answers of the endpoint picker: endpoints; an error; none, since it took too long; or its gateway left.",
        ("answer",),
        read=lambda c: _of_leases(c, _by_label(c.parts.leases.picks)),
    ),
    StateMetric(
        "draftpick_reports_rejected_total",
        "counter",
        "Outcomes that changed nothing: of an unknown lease, doubled, late, without the secret, or invalid.",
        ("reason",),
        read=lambda c: _of_leases(c, _by_label(c.parts.leases.rejected)),
    ),
    StateMetric(
        "draftpick_reports_lost_total",
        "counter",
        "Outcomes that engines say they could not report: too many waited, for too long, or the router refused them.",
        ("reason",),
        read=lambda c: _of_leases(c, _by_label(c.parts.leases.lost)),
    ),
)
"""All metrics of this collector, in the order of the page: a new one is an entry."""
