"""One router: a dispatcher over a fleet, with replica table, client and records. Independent of Ray."""

import asyncio
import contextlib
import logging
import resource
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from prometheus_client import ProcessCollector
from prometheus_client.registry import Collector

from draftpick.engines.errors import ConfigError
from draftpick.engines.external import access_of, address_of, origin_of
from draftpick.engines.http.client import EngineClient
from draftpick.engines.http.server import LocalServer, node_address
from draftpick.engines.models.embedded import ENCODER_NAME, encoder_path
from draftpick.engines.replicas import ReplicaTable
from draftpick.engines.reporting.ticket import read_secret
from draftpick.router.config.router_config import EMBEDDED, DraftpickConfig, LiveConfig, RouterConfig
from draftpick.router.errors import PolicyRejected
from draftpick.router.features.featurizer import Featurizer, LexicalFeaturizer, SentenceFeaturizer
from draftpick.router.features.sentence_encoder import load_sentence_encoder
from draftpick.router.features.static_embedding import StaticFeaturizer
from draftpick.router.http.app import RouterApp
from draftpick.router.http.auth import Keyring
from draftpick.router.http.lease_pages import ReportInbox
from draftpick.router.http.protocol import DoorLimits, protocol_of
from draftpick.router.load.autoscaler import Autoscaler, TargetSetter
from draftpick.router.load.engine_poller import EnginePoller
from draftpick.router.load.health_probe import HealthProbe
from draftpick.router.monitoring.fleet_metrics import fleet_metrics, page_of
from draftpick.router.monitoring.gauges import StateCollector
from draftpick.router.online.events import Event, EventLog
from draftpick.router.online.peer_store import PeerStore
from draftpick.router.online.peer_sync import PeerSync
from draftpick.router.parts import build_parts
from draftpick.router.policies import check_features
from draftpick.router.policies.base import Policy
from draftpick.router.policies.baselines import FixedPolicy
from draftpick.router.policies.costs import cost_sources
from draftpick.router.records import RecordWriter
from draftpick.router.registry.file_watcher import FileWatcher
from draftpick.router.registry.registry import STATE, Registry
from draftpick.router.registry.resolve import ResolvedPolicy, could_be_registry, resolve, resolve_configured
from draftpick.router.request.ability import configured_abilities
from draftpick.router.request.shadow import WORKERS
from draftpick.router.supervision import Supervisor
from draftpick.router.telemetry.tracing import Tracing

log = logging.getLogger("draftpick.router")

_REFRESH_S = 1.0
_ADDRESSES_S = 5.0
_WATCH_S = 0.25
_INBOX_DRAIN_S = 1.0
Addresses = Callable[[], Awaitable[list[str]]]
"""Returns the addresses of an arm's replicas."""
Pages = Callable[[], Awaitable[Mapping[str, str]]]
"""Returns the metrics pages of the other routers of the fleet, by name."""


class Server(Protocol):
    """A further server of a router."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class Router:
    """Owns one dispatcher with its replica table, client and records; keeps the table fresh.

    `beside`: servers that start and stop with it; `access`: how engines are reached, by scheme and host.
    """

    _inbox: LocalServer | None = None

    def __init__(
        self,
        config: DraftpickConfig,
        sources: dict[str, Addresses],
        set_targets: Mapping[str, TargetSetter] | None = None,
        *,
        name: str = "0",
        peer_pages: Pages | None = None,
    ) -> None:
        """`sources`: return the addresses of each arm's replicas; called once a second.

        `set_targets`: set the number of replicas of an arm. `name`: of this router among several; `peer_pages`: the
        other routers' metrics, included in a scrape.
        """
        router = config.router
        self._sources, self._config, self._arms = sources, router, config.arms
        self._replicas = ReplicaTable(config.arms, router.breaker, router.admission.max_in_flight_per_replica)
        self.access = access_of(config.engines)
        self._client = EngineClient(
            first_byte_timeout_s=router.first_byte_timeout_s,
            timeout_s=router.timeout_s,
            stream_idle_timeout_s=router.stream_idle_timeout_s,
            access=self.access,
        )
        self._access_by_engine = {
            engine.name: self.access[origin_of(str(engine.url))] for engine in config.engines if engine.url is not None
        }
        self._name, self._peer_pages = name, peer_pages
        self._tracing = Tracing(router.tracing) if router.tracing.sample_rate else None
        # Created before the files are read, so that no change in between is missed.
        self.registry = Registry(Path(router.policy)) if could_be_registry(router.policy) else None
        self._watchers = list(self._watched_files())
        self._keys = Keyring(router.keys)
        self._records = RecordWriter(router.records) if router.records.dir else None
        self._policy_lock = asyncio.Lock()
        chosen, featurizer = self._first_policy()
        self.parts = build_parts(
            router,
            chosen.policy,
            featurizer,
            self._replicas,
            self._client,
            self._records,
            baseline=config.baseline,
            accelerators=config.accelerators,
            tracing=self._tracing,
            configured=configured_abilities(config),
        )
        parts, self.supervisor = self.parts, Supervisor(self.parts.metrics.failures)
        self._engine_poller = EnginePoller(
            self._client, self._replicas, parts.load, router.load.report_interval_s, supervisor=self.supervisor
        )
        self._health_probe = HealthProbe(self._client, self._replicas)
        self._activate(chosen)
        self._peer_sync = self._peer_news()
        self.app = RouterApp(parts, model=config.target.name, config=router, owner=self, keys=self._keys)
        self.autoscaler = Autoscaler(config, self._replicas, parts.demand, parts.load, set_targets or {})
        gauges = StateCollector(parts, lambda: self.autoscaler.targets, lambda: self.rejected is not None)
        self.collectors: tuple[Collector, ...] = parts.attempts, parts.metrics, gauges, ProcessCollector(registry=None)
        self._tasks, self.beside = set[asyncio.Task[None]](), list[Server]()

    def _watched_files(self) -> Iterator[tuple[FileWatcher, Callable[[], Awaitable[None]]]]:
        """The files that may change while it runs, and what follows such a change."""
        if self._config.keys.file is not None and self._config.keys.file.is_file():
            yield FileWatcher(self._config.keys.file), self._reload_keys
        if self.registry is not None:
            yield FileWatcher(self.registry.path / STATE), self._follow_registry

    def _first_policy(self) -> tuple[ResolvedPolicy, Featurizer | None]:
        """The configured policies, or the default engine if they are rejected; and the featurizer they need."""
        router, arms = self._config, self._arms
        chosen, self.rejected = resolve_configured(router, arms)
        featurizer = make_featurizer(router, chosen.policy)
        try:
            check_features(chosen.policy, featurizer.id if featurizer else None)
        except PolicyRejected as error:
            chosen, self.rejected = ResolvedPolicy(FixedPolicy(arms, router.default_engine)), str(error)
        if self.rejected:
            log.error("policy rejected, %r serves: %s", router.default_engine, self.rejected)
        return chosen, featurizer

    def _peer_news(self) -> PeerSync | None:
        """Exchange of events and corrections between routers, if a folder for them is configured."""
        router, parts = self._config, self.parts
        beside = router.records.dir / "online" if router.records.dir else None
        folder = router.online.dir or beside
        if folder is None:
            return None
        return PeerSync(
            PeerStore(folder), parts.events.unwritten, parts.active_policies.learners, parts.metrics.failures
        )

    async def start(self) -> None:
        """Start to follow the engines' replicas."""
        await asyncio.gather(*(self._refresh_replicas(arm) for arm in self._sources))
        await self._open_inbox()
        for arm in self._sources:
            self._run("addresses", partial(self._follow_replicas, arm))
        for watched, follow in self._watchers:
            self._run("files", partial(self._watch_file, watched, follow))
        if self._config.shadow.sample_rate:
            for _ in range(WORKERS):
                self._run("shadow", lambda: self.parts.shadow.run(self.parts.dispatcher.run_shadow))
        if self.autoscaler.enabled:
            self._run("autoscaling", self.autoscaler.run)
        if self._config.load.enabled:
            self._run("load", self._engine_poller.run)
        if self._peer_sync is not None:
            self._run("peers", self._peer_sync.run)
        self._run("health", self._health_probe.run)
        self._run("models", self.parts.catalog.run)
        for server in self.beside:
            await server.start()

    async def _open_inbox(self) -> None:
        """Take the engines' reports, if leases are on and there is a secret. Raises `ConfigError`."""
        leases = self._config.leases
        if leases.enabled and (secret := read_secret()) is not None:
            host = node_address() if leases.report_host == "node" else leases.report_host
            inbox = ReportInbox(self._config, self.parts.leases, secret)
            limits = DoorLimits.from_config(self._config, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            self._inbox = LocalServer(inbox, host, leases.report_port, protocol=protocol_of(limits))
            await self._inbox.start()
            self.parts.leases.inbox = self._inbox.url, secret

    def _run(self, part: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run a background task until `stop`."""
        self._tasks.add(asyncio.create_task(self.supervisor.run(part, work)))

    async def stop(self) -> None:
        """Close connections and flush queued records."""
        for server in self.beside:
            await server.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)  # their attempts end, too
        await self.parts.leases.close()
        if self._inbox is not None:
            await self._inbox.drain(_INBOX_DRAIN_S)
        await self._client.close()
        self.parts.attempts.close()
        if self._peer_sync is not None:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._peer_sync.close)
        if self._records is not None:
            await asyncio.to_thread(self._records.close)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def use_policy(self, name: str) -> str:
        """Activate another policy; returns its id. Raises `PolicyRejected`, and keeps the old one then."""
        async with self._policy_lock:  # serialise changes: the last one wins
            resolved = await asyncio.to_thread(resolve, name, self._arms, self._config.default_engine)
            policy, featurizer = resolved.policy, self.parts.dispatcher.featurizer
            if policy.featurizer is not None and (featurizer is None or featurizer.id != policy.featurizer):
                featurizer = await asyncio.to_thread(make_featurizer, self._config, policy)
            check_features(policy, featurizer.id if featurizer else None)
            self.parts.dispatcher.featurizer, self.rejected = featurizer, None
            self._activate(resolved)
            return policy.id

    def _activate(self, resolved: ResolvedPolicy) -> None:
        """Activate policies; rejects and reports a candidate that needs other features."""
        serving, featurizer = self.parts.active_policies, self.parts.dispatcher.featurizer
        before, candidate = serving.policy.id, resolved.candidate
        self.candidate_rejected = resolved.candidate_rejected
        if candidate is not None:
            try:
                check_features(candidate, featurizer.id if featurizer else None)
            except PolicyRejected as error:
                candidate, self.candidate_rejected = None, str(error)
        if self.candidate_rejected:
            log.error("candidate rejected: %s", self.candidate_rejected)
        serving.activate(resolved.policy, candidate, resolved.share)
        if resolved.policy.id != before:
            text = f"{resolved.policy.id} serves after {before}"
            self.parts.events.emit(Event(time.time(), "policy_activated", text, policy=resolved.policy.id))

    @property
    def events(self) -> EventLog:
        """Recent events."""
        self.parts.attempts.drain()
        return self.parts.events

    async def configure(self, live: LiveConfig) -> None:
        """Apply live settings. If a policy is rejected, the old one stays active, and an event reports it."""
        if live.admission is not None:
            self.parts.admission.configure(live.admission)
            self._replicas.max_in_flight = live.admission.max_in_flight_per_replica
        if live.exploration is not None:
            self.parts.active_policies.explore = live.exploration.rate
        if live.policy is not None:
            await self._try_policy(live.policy)

    async def _try_policy(self, name: str) -> None:
        try:
            await self.use_policy(name)
        except PolicyRejected as error:
            self.rejected = str(error)
            going_on = self.parts.active_policies.policy.id
            text = f"a policy was rejected, {going_on} stays active: {error}"
            self.parts.events.emit(Event(time.time(), "policy_rejected", text, policy=going_on))

    async def _follow_registry(self) -> None:
        await self._try_policy(self._config.policy)

    async def _reload_keys(self) -> None:
        try:
            await asyncio.to_thread(self._keys.reload)
        except ConfigError as error:
            log.error("keys rejected, the old ones stay valid: %s", error)

    async def _watch_file(self, watcher: FileWatcher, on_change: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            if await asyncio.to_thread(watcher.changed):
                await on_change()

    def state(self) -> dict[str, object]:
        """The content of `/ready`."""
        self.parts.attempts.drain()
        records, serving = self._records, self.parts.active_policies
        return {
            "ready": self._replicas.reachable(),
            "policy": serving.policy.id,
            "policy_rejected": self.rejected,
            "candidate": {"policy": serving.candidate.id, "share": serving.share} if serving.candidate else None,
            "candidate_rejected": self.candidate_rejected,
            "safe_mode": serving.safe_modes(),
            "costs": cost_sources(serving.policy),
            "exploration": "wide" if any(online.level_deviations for _, online in serving.learners()) else "narrow",
            "engines": {arm: len(urls) for arm, urls in self._replicas.urls().items()},
            "in_flight": self._replicas.in_flight(),
            "loads": {arm: [r.total_in_flight for r in there] for arm, there in self._replicas.by_arm.items()},
            "stale": sorted(self.parts.load.staleness.suspects),
            "target_replicas": self.autoscaler.targets,
            "unmet_demand": {arm: round(n, 2) for arm, n in self.parts.demand.unmet().items()},
            "breakers": self._replicas.health(),
            "quarantine": self.parts.acceptance_monitor.state(),
            "admission": self.parts.admission.state(),
            "tasks": len(asyncio.all_tasks()),
            "counts": self.parts.metrics.counts(),
            "records": {"written": records.written, "dropped": records.dropped} if records else None,
        }

    async def own_metrics(self) -> str:
        """This router's own metrics as a Prometheus page."""
        return await page_of(self.collectors)

    async def metrics(self) -> str:
        """The metrics of all routers and engines as one Prometheus page."""
        others = await self._peer_pages() if self._peer_pages is not None else {}
        pages = {**others, self._name: await self.own_metrics()}
        return await fleet_metrics(self._client, self._replicas.urls(), pages)

    async def _follow_replicas(self, arm: str) -> None:
        while True:
            await asyncio.sleep(_REFRESH_S)
            await self._refresh_replicas(arm)

    async def _refresh_replicas(self, arm: str) -> None:
        try:
            async with asyncio.timeout(_ADDRESSES_S):  # wait_for of Python 3.11 may swallow a cancellation
                urls = await self._sources[arm]()
        except Exception as error:  # Serve raises various errors while replicas change
            # Keep the known addresses: a slow answer is not a failure, and a dead replica refuses its next connection.
            log.debug("no addresses of %s: %s", arm, error)
            return
        self._replicas.update(arm, urls)
        if (access := self._access_by_engine.get(arm)) is not None:
            self.access.update(dict.fromkeys(urls, access))


def make_featurizer(config: RouterConfig, policy: Policy) -> Featurizer | None:
    """The configured featurizer; `auto`: the one that the policy needs."""
    name = config.featurizer
    if name == "auto":
        wanted = policy.featurizer or "none"
        name = next((known for known in ("none", "lexical", "static") if wanted.startswith(known)), EMBEDDED)
    if name == "none":
        return None
    if name == "lexical":
        return LexicalFeaturizer()
    if name == "static":
        return static_featurizer()
    return sentence_featurizer(None if name == EMBEDDED else Path(name))


def sentence_featurizer(path: Path | None = None) -> SentenceFeaturizer:
    """The featurizer of the encoder at `path`, or of the embedded one."""
    encode, dimension = load_sentence_encoder(path or encoder_path())
    return SentenceFeaturizer(encode, dimension, path.name if path else ENCODER_NAME)


def static_featurizer() -> StaticFeaturizer:
    """The featurizer of the shipped word vectors; runs no model."""
    return StaticFeaturizer()


def fixed_address(url: str) -> Addresses:
    """The fixed address of an external engine, without secrets."""
    address = address_of(url)

    async def addresses() -> list[str]:
        return [address]

    return addresses


def addresses_behind(url: str) -> Addresses:
    """All addresses of an external engine's name, without secrets: gateways know engines by address and port.

    A name with several, such as that of a headless service in Kubernetes, has a replica at each: IPv4 if there are any,
    since one pod may have both. With TLS the name stays: the engine's certificate is for it.
    """
    parts = urlsplit(address_of(url))
    if parts.scheme == "https":
        return fixed_address(url)
    port = parts.port or 80

    async def addresses() -> list[str]:
        found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        old = dict.fromkeys(str(to[0]) for family, *_, to in found if family == socket.AF_INET)
        hosts = old or dict.fromkeys(f"[{to[0]}]" for *_, to in found)
        return [f"http://{host}:{port}" for host in hosts]

    return addresses
