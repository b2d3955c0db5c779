"""What the parts of a router hold, read when somebody asks for its metrics: a request pays nothing for these."""

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

BUILD = MetricFamily("draftpick_build_info", "gauge", "1, with the version that runs.", ("version",))
READY = MetricFamily("draftpick_ready", "gauge", "Whether an engine can take requests.")
IN_FLIGHT = MetricFamily("draftpick_requests_in_flight", "gauge", "Requests that the router answers now.")
QUEUED = MetricFamily("draftpick_requests_queued", "gauge", "Requests that wait in the router for a place.")
QUEUE_REJECTED = MetricFamily(
    "draftpick_queue_refused_total", "counter", "Requests that found the queue full, or were put out of it."
)
TOO_LONG = MetricFamily("draftpick_queue_timeouts_total", "counter", "Requests that waited too long in the queue.")
FALLBACKS = MetricFamily(
    "draftpick_fallbacks_total",
    "counter",
    "Decisions that fell back to a fixed engine, by what was missing.",
    ("reason",),
)
FAILURES = MetricFamily(
    "draftpick_internal_failures_total",
    "counter",
    "What failed inside and cost no request: features, learning, events that could not be written.",
    ("part",),
)
STREAMS_RESUMED = MetricFamily(
    "draftpick_continued_total", "counter", "Broken streams that another engine went on with."
)
ARM_IN_FLIGHT = MetricFamily(
    "draftpick_arm_requests_in_flight", "gauge", "This router's requests at each engine.", ("arm",)
)
ARM_LOAD = MetricFamily("draftpick_arm_load_requests", "gauge", "Requests at each engine, whoever sent them.", ("arm",))
ARM_WAITING = MetricFamily(
    "draftpick_arm_waiting_requests", "gauge", "Requests that wait at each engine, as it last reported.", ("arm",)
)
ARM_SERVICE = MetricFamily(
    "draftpick_arm_service_seconds", "gauge", "Moving mean of what a request takes, its wait left out.", ("arm",)
)
ARM_STALE = MetricFamily(
    "draftpick_arm_stale", "gauge", "Whether an engine that reported its load has stopped to.", ("arm",)
)
REPLICAS = MetricFamily(
    "draftpick_replicas", "gauge", "Replicas of each engine by the state of their breaker.", ("arm", "state")
)
BREAKER_OPENED = MetricFamily(
    "draftpick_breaker_opened_total", "counter", "How often a replica's breaker opened.", ("arm", "replica")
)
DRAFTS = MetricFamily(
    "draftpick_arm_drafts",
    "gauge",
    "1 for the present one of `ok`, `quarantined`, `probed`: are drafts lost.",
    ("arm", "state"),
)
QUARANTINES = MetricFamily(
    "draftpick_quarantines_total", "counter", "How often an engine was quarantined for lost drafts."
)
WANTED = MetricFamily(
    "draftpick_arm_replicas_wanted", "gauge", "Replicas that the demand for each engine asks for.", ("arm",)
)
UNMET = MetricFamily(
    "draftpick_arm_unmet_demand_ratio",
    "gauge",
    "How much more often an engine would be chosen if no engine had load: 0.3 is 30 % more.",
    ("arm",),
)
POLICY = MetricFamily(
    "draftpick_policy_info",
    "gauge",
    "1, with the id of the policy that is `active`, or `candidate`.",
    ("policy", "role"),
)
SHARE = MetricFamily("draftpick_candidate_share_ratio", "gauge", "Share of the requests that the candidate decides.")
EXPLORE = MetricFamily(
    "draftpick_explore_ratio", "gauge", "Share of a decision that may go to engines that are tried out."
)
POLICY_SUSPENDED = MetricFamily(
    "draftpick_policy_put_aside", "gauge", "Whether a policy loses against its default engine, which serves.", ("role",)
)
POLICY_REJECTED = MetricFamily(
    "draftpick_policy_refused", "gauge", "Whether the policy that the configuration names was refused."
)
WRITTEN = MetricFamily("draftpick_records_written_total", "counter", "Records of attempts on the disk.")
DROPPED = MetricFamily(
    "draftpick_records_dropped_total", "counter", "Records that the disk did not take, or not in time."
)
METRICS = (
    *(BUILD, READY, IN_FLIGHT, QUEUED, QUEUE_REJECTED, TOO_LONG, FALLBACKS, FAILURES, STREAMS_RESUMED),
    *(ARM_IN_FLIGHT, ARM_LOAD, ARM_WAITING, ARM_SERVICE, ARM_STALE, WANTED, UNMET),
    *(REPLICAS, BREAKER_OPENED, DRAFTS, QUARANTINES),
    *(POLICY, SHARE, EXPLORE, POLICY_SUSPENDED, POLICY_REJECTED, WRITTEN, DROPPED),
)
"""All that are read here."""

_STATES: tuple[State, ...] = ("closed", "open", "half_open")


@dataclass(frozen=True, slots=True)
class StateCollector:
    """Reads the parts of a router. `targets`: replicas by arm; `rejected`: whether its policy was."""

    parts: Parts
    targets: Callable[[], Mapping[str, int]] = dict
    rejected: Callable[[], bool] = bool

    def collect(self) -> Iterator[Metric]:
        """Families of all metrics, as they are now."""
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
