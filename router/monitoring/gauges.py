"""State of the router's parts as metrics, read at scrape time: no cost per request."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

from prometheus_client.metrics_core import Metric

from draftpick.engines.circuit_breaker import State
from draftpick.engines.http.client import redact_userinfo
from draftpick.router.parts import Parts
from draftpick.router.telemetry.metrics import FAILING_PARTS, MetricFamily

BUILD = MetricFamily("draftpick_build_info", "gauge", "1, labelled with the running version.", ("version",))
READY = MetricFamily("draftpick_ready", "gauge", "1 if an engine can take requests.")
IN_FLIGHT = MetricFamily("draftpick_requests_in_flight", "gauge", "Requests in flight in the router.")
QUEUED = MetricFamily("draftpick_requests_queued", "gauge", "Requests in the router's queue.")
QUEUE_REJECTED = MetricFamily(
    "draftpick_queue_refused_total", "counter", "Requests rejected because the queue was full, or shed from it."
)
TOO_LONG = MetricFamily("draftpick_queue_timeouts_total", "counter", "Requests that timed out in the queue.")
FALLBACKS = MetricFamily(
    "draftpick_fallbacks_total",
    "counter",
    "Decisions that fell back to a fixed engine, by reason.",
    ("reason",),
)
FAILURES = MetricFamily(
    "draftpick_internal_failures_total",
    "counter",
    "Internal failures without a failed request: features, learning, writing events.",
    ("part",),
)
STREAMS_RESUMED = MetricFamily("draftpick_continued_total", "counter", "Broken streams resumed on another engine.")
ARM_IN_FLIGHT = MetricFamily(
    "draftpick_arm_requests_in_flight", "gauge", "This router's requests in flight by engine.", ("arm",)
)
ARM_LOAD = MetricFamily("draftpick_arm_load_requests", "gauge", "Requests of all clients by engine.", ("arm",))
ARM_WAITING = MetricFamily(
    "draftpick_arm_waiting_requests", "gauge", "Waiting requests by engine, as last reported.", ("arm",)
)
ARM_SERVICE = MetricFamily(
    "draftpick_arm_service_seconds", "gauge", "Moving mean of a request's service time, without waiting.", ("arm",)
)
ARM_STALE = MetricFamily("draftpick_arm_stale", "gauge", "1 if the engine's load reports have stopped.", ("arm",))
REPLICAS = MetricFamily("draftpick_replicas", "gauge", "Replicas by engine and breaker state.", ("arm", "state"))
BREAKER_OPENED = MetricFamily(
    "draftpick_breaker_opened_total", "counter", "Openings of a replica's breaker.", ("arm", "replica")
)
DRAFTS = MetricFamily(
    "draftpick_arm_drafts",
    "gauge",
    "1 for the current state of the drafter: `ok`, `quarantined`, `probed`.",
    ("arm", "state"),
)
QUARANTINES = MetricFamily(
    "draftpick_quarantines_total", "counter", "Quarantines of an engine for a collapsed acceptance."
)
WANTED = MetricFamily("draftpick_arm_replicas_wanted", "gauge", "Target replicas by engine.", ("arm",))
UNMET = MetricFamily(
    "draftpick_arm_unmet_demand_ratio",
    "gauge",
    "Relative excess of unloaded choices of an engine over actual ones: 0.3 is 30 % more.",
    ("arm",),
)
POLICY = MetricFamily(
    "draftpick_policy_info",
    "gauge",
    "1, labelled with the id of the `active` policy and of the `candidate`.",
    ("policy", "role"),
)
SHARE = MetricFamily("draftpick_candidate_share_ratio", "gauge", "Share of requests decided by the candidate.")
EXPLORE = MetricFamily("draftpick_explore_ratio", "gauge", "Exploration rate.")
POLICY_SUSPENDED = MetricFamily(
    "draftpick_policy_put_aside",
    "gauge",
    "1 if the policy is suspended, since it lost time against its default engine.",
    ("role",),
)
POLICY_REJECTED = MetricFamily("draftpick_policy_refused", "gauge", "1 if the configured policy was rejected.")
WRITTEN = MetricFamily("draftpick_records_written_total", "counter", "Records of attempts written to disk.")
DROPPED = MetricFamily(
    "draftpick_records_dropped_total", "counter", "Records dropped, since the disk failed or was too slow."
)
METRICS = (
    *(BUILD, READY, IN_FLIGHT, QUEUED, QUEUE_REJECTED, TOO_LONG, FALLBACKS, FAILURES, STREAMS_RESUMED),
    *(ARM_IN_FLIGHT, ARM_LOAD, ARM_WAITING, ARM_SERVICE, ARM_STALE, WANTED, UNMET),
    *(REPLICAS, BREAKER_OPENED, DRAFTS, QUARANTINES),
    *(POLICY, SHARE, EXPLORE, POLICY_SUSPENDED, POLICY_REJECTED, WRITTEN, DROPPED),
)
"""All metrics of this collector."""

_STATES: tuple[State, ...] = ("closed", "open", "half_open")


@dataclass(frozen=True, slots=True)
class StateCollector:
    """Collects the state of a router. `targets`: replicas by arm; `rejected`: whether its policy was rejected."""

    parts: Parts
    targets: Callable[[], Mapping[str, int]] = dict
    rejected: Callable[[], bool] = bool

    def collect(self) -> Iterator[Metric]:
        yield BUILD.family([((_version(),), 1)])
        yield READY.family([((), self.parts.replicas.reachable())])
        yield from self._requests()
        yield from self._arms()
        yield from self._health()
        yield from self._policies()
        if self.parts.records is not None:
            yield WRITTEN.family([((), self.parts.records.written)])
            yield DROPPED.family([((), self.parts.records.dropped)])

    def _requests(self) -> Iterator[Metric]:
        admission, metrics = self.parts.admission, self.parts.metrics
        yield IN_FLIGHT.family([((), admission.in_flight)])
        yield QUEUED.family([((), admission.queued)])
        yield QUEUE_REJECTED.family([((), admission.counts["refused"])])
        yield TOO_LONG.family([((), admission.counts["waited_too_long"])])
        yield FALLBACKS.family(((reason,), n) for reason, n in metrics.fallbacks.items())
        failed = {part: sum(n for (one, _), n in metrics.failures.items() if one == part) for part in FAILING_PARTS}
        yield FAILURES.family(((part,), n) for part, n in failed.items())
        yield STREAMS_RESUMED.family([((), metrics.streams_resumed)])

    def _arms(self) -> Iterator[Metric]:
        load, demand, by_arm = self.parts.load, self.parts.demand, self.parts.replicas.by_arm
        yield ARM_IN_FLIGHT.family(((arm,), n) for arm, n in self.parts.replicas.in_flight().items())
        yield ARM_LOAD.family(((arm,), sum(r.total_in_flight for r in there)) for arm, there in by_arm.items())
        waiting = {arm: sum(r.report.waiting for r in there if r.report is not None) for arm, there in by_arm.items()}
        yield ARM_WAITING.family(((arm,), n) for arm, n in waiting.items())
        yield ARM_SERVICE.family(((arm,), seconds) for arm, seconds in load.service_s.items())
        yield ARM_STALE.family(((arm,), arm in load.stale) for arm in by_arm)
        yield WANTED.family(((arm,), n) for arm, n in self.targets().items())
        yield UNMET.family(((arm,), share) for arm, share in demand.unmet().items())

    def _health(self) -> Iterator[Metric]:
        by_arm, watch = self.parts.replicas.by_arm, self.parts.acceptance_monitor
        states = {arm: Counter(r.breaker.state for r in there) for arm, there in by_arm.items()}
        yield REPLICAS.family(((arm, state), n[state]) for arm, n in states.items() for state in _STATES)
        everywhere = [(arm, r) for arm, there in by_arm.items() for r in there]
        yield BREAKER_OPENED.family(((arm, redact_userinfo(r.url)), r.breaker.opened) for arm, r in everywhere)
        drafts = watch.state().items()
        known = ("ok", "quarantined", "probed")
        yield DRAFTS.family(((arm, state), state == now) for arm, now in drafts for state in known)
        yield QUARANTINES.family([((), watch.quarantined)])

    def _policies(self) -> Iterator[Metric]:
        serving = self.parts.active_policies
        candidate = serving.candidate
        roles = {"active": serving.policy.id} | ({} if candidate is None else {"candidate": candidate.id})
        yield POLICY.family(((policy, role), 1) for role, policy in roles.items())
        yield SHARE.family([((), serving.share)])
        yield EXPLORE.family([((), serving.explore)])
        aside = zip(roles, serving.learners(), strict=True)
        yield POLICY_SUSPENDED.family(((role,), online.suspended) for role, (_, online) in aside)
        yield POLICY_REJECTED.family([((), self.rejected())])


@cache
def _version() -> str:
    return version("draftpick")
