"""The composition of one router: builds all parts from the configuration."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from draftpick.engines.arms import engine_of
from draftpick.engines.http.client import EngineClient
from draftpick.engines.replicas import ReplicaTable
from draftpick.router.config.router_config import RouterConfig
from draftpick.router.features.featurizer import Featurizer
from draftpick.router.load.demand import Demand
from draftpick.router.load.health_signal import HealthSignal
from draftpick.router.load.load_model import LoadModel
from draftpick.router.load.model_catalog import ModelCatalog
from draftpick.router.online.events import Event, EventLog
from draftpick.router.online.quarantine import AcceptanceMonitor
from draftpick.router.online.sessions import Sessions
from draftpick.router.policies.base import Policy
from draftpick.router.records import RecordWriter
from draftpick.router.registry.active_policy import ActivePolicies
from draftpick.router.request.ability import Abilities, EngineAbility
from draftpick.router.request.admission import Admission
from draftpick.router.request.attempt_queue import AttemptQueue
from draftpick.router.request.decision import DecisionMaker
from draftpick.router.request.dispatcher import Dispatcher
from draftpick.router.request.learning import AttemptLearning
from draftpick.router.request.leases import Leases
from draftpick.router.request.predictions import Predictions
from draftpick.router.request.prefix_index import PrefixIndex
from draftpick.router.request.shadow import Shadow
from draftpick.router.telemetry.metrics import Metrics
from draftpick.router.telemetry.recent_requests import RecentRequests
from draftpick.router.telemetry.tracing import Tracing
from draftpick.router.types import AttemptObserver

event_log = logging.getLogger("draftpick.events")

_LEVELS = {
    "policy_activated": logging.INFO,
    "safe_mode_left": logging.INFO,
    "arm_quarantined": logging.ERROR,
    "policy_rejected": logging.ERROR,
    "safe_mode_entered": logging.ERROR,
}
"""Events logged as information; others are warnings."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a router. `baseline`: the engine that serves while no load is known."""

    config: RouterConfig
    baseline: str
    replicas: ReplicaTable
    events: EventLog
    active_policies: ActivePolicies
    load: LoadModel
    demand: Demand
    prefixes: PrefixIndex
    admission: Admission
    acceptance_monitor: AcceptanceMonitor
    health_signals: Sequence[HealthSignal]
    metrics: Metrics
    attempts: AttemptQueue
    recent: RecentRequests
    shadow: Shadow
    decide: DecisionMaker
    catalog: ModelCatalog
    abilities: Abilities
    dispatcher: Dispatcher
    leases: Leases
    records: RecordWriter | None


def build_parts(
    config: RouterConfig,
    policy: Policy,
    featurizer: Featurizer | None,
    replicas: ReplicaTable,
    client: EngineClient,
    records: RecordWriter | None = None,
    *,
    baseline: str | None = None,
    accelerators: Mapping[str, int] | None = None,
    tracing: Tracing | None = None,
    configured: Mapping[str, EngineAbility] | None = None,
) -> Parts:
    """`baseline`: serves while no load is known (default: the default engine); `accelerators`: per replica (1);
    `configured`: what the configuration says of each engine."""
    arms, baseline, rng = replicas.arms, baseline or config.default_engine, np.random.default_rng(config.seed)
    active_policies = ActivePolicies(config, policy, events := EventLog())
    load, prefixes = LoadModel(config.load, replicas, accelerators), PrefixIndex(config.prefix_cache)
    load.on_profiles = active_policies.use_profiles
    admission, metrics, recent = Admission(config.admission), Metrics(arms, baseline), RecentRequests(baseline)
    acceptance_monitor = AcceptanceMonitor(arms, config.quarantine, on_event=active_policies.emit_for_arm)
    shadow = Shadow(config.shadow, lambda: admission.in_flight, replicas.eligible, rng)
    # To add a health signal, add an entry here.
    health_signals: list[HealthSignal] = [acceptance_monitor, load.staleness]
    decide = DecisionMaker(config, active_policies, replicas, load, health_signals, admission, metrics, baseline, rng)
    known, engines = configured or {}, tuple(replicas.by_engine)
    catalog = ModelCatalog(client, replicas, [e for e in engines if e not in known or known[e].drafts is None])
    abilities = Abilities(engines, engine_of(baseline), catalog, known)
    learning = AttemptLearning(active_policies, acceptance_monitor, load)
    observers: dict[str, AttemptObserver | None]
    observers = {"learning": learning, "metrics": metrics, "recent": recent, "records": records}  # a new one: an entry
    attempts = AttemptQueue(observers, metrics.failures, active_policies.classify)
    events.subscribe(metrics.on_event, _log_event, shadow.on_event, acceptance_monitor.on_event)
    dispatcher = Dispatcher(
        config,
        replicas=replicas,
        client=client,
        decide=decide,
        admission=admission,
        prefixes=prefixes,
        demand=(demand := Demand(arms)),
        shadow=shadow,
        metrics=metrics,
        abilities=abilities,
        predictions=Predictions({name: one.copying for name, one in known.items()}),
        sessions=Sessions(config.sessions, keep_prefixes=config.prefix_cache.enabled),
        on_attempt_end=attempts.put,
        featurizer=featurizer,
        tracing=tracing,
    )
    return Parts(
        config=config, baseline=baseline, replicas=replicas, events=events, active_policies=active_policies,
        load=load, demand=demand, prefixes=prefixes, admission=admission, acceptance_monitor=acceptance_monitor,
        health_signals=health_signals, metrics=metrics, attempts=attempts, recent=recent, shadow=shadow,
        decide=decide, catalog=catalog, abilities=abilities, dispatcher=dispatcher,
        leases=Leases(config.leases, dispatcher), records=records,
    )  # fmt: skip


def _log_event(event: Event) -> None:
    about = {"event": event.kind, "arm": event.arm, "policy": event.policy, "figures": dict(event.figures)}
    event_log.log(_LEVELS.get(event.kind, logging.WARNING), event.text, extra=about)
