"""One router: a dispatcher over a fleet, with its replica table, its client and its records. It knows no Ray."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from engines.client import EngineClient
from engines.embedded import ENCODER_NAME, encoder_path
from engines.errors import ConfigError
from engines.replicas import ReplicaTable
from router.config import EMBEDDED, DraftpickConfig, LiveConfig, RouterConfig
from router.dispatch import Dispatcher
from router.encoder import load_sentence_encoder
from router.errors import PolicyRefused
from router.features import Featurizer, LexicalFeaturizer, SentenceFeaturizer
from router.fleet_metrics import fleet_metrics
from router.ingress import Hooks, RouterApp
from router.keys import Keyring
from router.pointer import Watched
from router.policies import check_features, load
from router.policies.base import Policy
from router.policies.simple import FixedPolicy
from router.records import RecordWriter
from router.static_encoder import StaticFeaturizer

log = logging.getLogger("ray.serve")

_REFRESH_S = 1.0
_ADDRESSES_S = 5.0
_WATCH_S = 0.25
Addresses = Callable[[], Awaitable[list[str]]]
"""Asks for the addresses of an arm's replicas."""


class Router:
    """Owns one dispatcher with its replica table, client and records; keeps the table fresh."""

    def __init__(
        self,
        config: DraftpickConfig,
        sources: dict[str, Addresses],
        broadcast_policy: Callable[[str], Awaitable[list[str]]] | None = None,
    ) -> None:
        """`sources` give the addresses of each arm's replicas, asked once a second.

        `broadcast_policy` takes a policy into service on every replica of the router; absent: on this one alone.
        """
        router = config.router
        self._sources, self._config, self._arms = sources, router, config.arms
        self._replicas = ReplicaTable(config.arms, router.breaker, router.limits.max_in_flight_per_replica)
        self._client = EngineClient(
            first_byte_timeout_s=router.first_byte_timeout_s,
            timeout_s=router.timeout_s,
            stall_timeout_s=router.stall_timeout_s,
        )
        self._keys = Keyring(router.keys)
        self._records = RecordWriter(router.records) if router.records.dir else None
        policy, self.refused = choose_policy(router, config.arms)
        featurizer = make_featurizer(router, policy)
        try:
            check_features(policy, featurizer.id if featurizer else None)
        except PolicyRefused as error:
            policy, self.refused = FixedPolicy(config.arms, router.default_engine), str(error)
        if self.refused:
            log.error("policy refused, %r serves: %s", router.default_engine, self.refused)
        self.dispatcher = Dispatcher(router, policy, featurizer, self._replicas, self._client, self._records)
        hooks = Hooks(self.state, self.start, self.stop, broadcast_policy or self._use_policy_here, self.metrics)
        self.app = RouterApp(self.dispatcher, model=config.target.name, config=router, hooks=hooks, keys=self._keys)
        self._watched = [
            (Watched(path), taken)
            for path, taken in ((Path(router.policy), self._follow_pointer), (router.keys.file, self._reload_keys))
            if path is not None and path.is_file()
        ]
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to follow the engines' replicas."""
        await asyncio.gather(*(self._refresh(arm) for arm in self._sources))
        self._tasks = {asyncio.create_task(self._follow(arm)) for arm in self._sources}
        self._tasks |= {asyncio.create_task(self._watch(watched, taken)) for watched, taken in self._watched}

    async def stop(self) -> None:
        """Close connections and write what is queued."""
        for task in self._tasks:
            task.cancel()
        await self._client.close()
        if self._records is not None:
            await asyncio.to_thread(self._records.close)

    async def use_policy(self, name: str) -> str:
        """Take another policy into service; its id. Raises `PolicyRefused`, and then the old one goes on."""
        policy = load(name, self._arms, self._config.default_engine)
        featurizer = self.dispatcher.featurizer
        if policy.featurizer is not None and (featurizer is None or featurizer.id != policy.featurizer):
            featurizer = await asyncio.to_thread(make_featurizer, self._config, policy)
        check_features(policy, featurizer.id if featurizer else None)
        self.dispatcher.policy, self.dispatcher.featurizer, self.refused = policy, featurizer, None
        log.info("policy %s serves", policy.id)
        return policy.id

    async def configure(self, live: LiveConfig) -> None:
        """Take what may change while the router runs. A policy that is refused leaves the old one, and is told of."""
        if live.limits is not None:
            self.dispatcher.admission.configure(live.limits)
            self._replicas.max_in_flight = live.limits.max_in_flight_per_replica
        if live.explore is not None:
            self.dispatcher.explore = live.explore
        if live.policy is not None:
            await self._try_policy(live.policy)

    async def _use_policy_here(self, name: str) -> list[str]:
        return [await self.use_policy(name)]

    async def _try_policy(self, name: str) -> None:
        try:
            await self.use_policy(name)
        except PolicyRefused as error:
            self.refused = str(error)
            log.error("policy refused, %s goes on: %s", self.dispatcher.policy.id, error)

    async def _follow_pointer(self) -> None:
        await self._try_policy(self._config.policy)

    async def _reload_keys(self) -> None:
        try:
            await asyncio.to_thread(self._keys.reload)
        except ConfigError as error:
            log.error("keys refused, the old ones go on: %s", error)

    async def _watch(self, watched: Watched, taken: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            if await asyncio.to_thread(watched.changed):
                await taken()

    def state(self) -> dict[str, object]:
        """What `/ready` shows."""
        records = self._records
        return {
            "ready": self._replicas.listening(),
            "policy": self.dispatcher.policy.id,
            "policy_refused": self.refused,
            "engines": {arm: len(urls) for arm, urls in self._replicas.urls().items()},
            "in_flight": self._replicas.load(),
            "breakers": self._replicas.health(),
            "drafts": self.dispatcher.watch.state(),
            "admission": self.dispatcher.admission.state(),
            "tasks": len(asyncio.all_tasks()),
            "counts": dict(self.dispatcher.counts),
            "records": {"written": records.written, "dropped": records.dropped} if records else None,
        }

    async def metrics(self) -> str:
        """What the engines say of themselves, as a Prometheus page."""
        return await fleet_metrics(self._client, self._replicas.urls())

    async def _follow(self, arm: str) -> None:
        while True:
            await asyncio.sleep(_REFRESH_S)
            await self._refresh(arm)

    async def _refresh(self, arm: str) -> None:
        try:
            urls = await asyncio.wait_for(self._sources[arm](), timeout=_ADDRESSES_S)
        except Exception as error:  # Serve raises many kinds while replicas come and go
            # What is known stays: a slow answer is no death, and a dead replica refuses its next connection.
            log.debug("no addresses of %s: %s", arm, error)
            return
        self._replicas.update(arm, urls)


def choose_policy(config: RouterConfig, arms: tuple[str, ...]) -> tuple[Policy, str | None]:
    """(policy, None), or (the default engine, why the configured policy was refused)."""
    try:
        return load(config.policy, arms, config.default_engine), None
    except PolicyRefused as error:
        return FixedPolicy(arms, config.default_engine), str(error)


def make_featurizer(config: RouterConfig, policy: Policy) -> Featurizer | None:
    """The featurizer that the configuration names; `auto`: the one that the policy needs."""
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
    """The featurizer over the encoder at `path`, or over the embedded one."""
    encode, dimension = load_sentence_encoder(path or encoder_path())
    return SentenceFeaturizer(encode, dimension, path.name if path else ENCODER_NAME)


def static_featurizer() -> StaticFeaturizer:
    """The featurizer over the word vectors that ship: no model runs."""
    return StaticFeaturizer()


def fixed(url: str) -> Addresses:
    """The one address of an engine that somebody else runs."""

    async def addresses() -> list[str]:
        return [url.rstrip("/")]

    return addresses
