"""The router as a Ray Serve deployment: HTTP for clients, a handle API for other deployments of the cluster."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle

from engines.client import EngineClient, Headers
from engines.embedded import ENCODER_NAME, encoder_path
from engines.errors import ConfigError
from engines.replicas import ReplicaTable
from router.config import EMBEDDED, DraftpickConfig, LiveConfig, RouterConfig, load_config
from router.dispatch import Dispatcher, Incoming
from router.encoder import load_sentence_encoder
from router.errors import PolicyRefused
from router.features import Featurizer, LexicalFeaturizer, SentenceFeaturizer
from router.ingress import Hooks, RouterApp
from router.keys import Keyring
from router.openai import parse
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
_CHAT = "/v1/chat/completions"


class Router:
    """Owns one dispatcher with its replica table, client and records; keeps the table fresh."""

    def __init__(
        self,
        config: DraftpickConfig,
        sources: dict[str, Callable[[], Awaitable[list[str]]]],
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
        hooks = Hooks(self.state, self.start, self.stop, broadcast_policy or self._use_policy_here)
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
            "ready": bool(self._replicas.present()),
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


@serve.ingress()
class RouterDeployment:
    """One replica of the router.

    By handle: `choose.remote(body)` decides and sends nothing; `send.remote(body)` answers it whole;
    `options(stream=True).stream.remote(body)` yields the bytes of a streamed answer.
    """

    def __init__(self, config: dict[str, Any], handles: dict[str, DeploymentHandle]) -> None:
        self._config = load_config(config)
        sources = {e.name: _static(str(e.url).rstrip("/")) for e in self._config.engines if e.url is not None}
        sources |= {arm: _addresses(handle) for arm, handle in handles.items()}
        self._sources = sources
        self._live = LiveConfig()
        self._router: Router | None = None

    async def __serve_build_asgi_app__(self) -> RouterApp:
        self._router = Router(self._config, self._sources, _broadcast_policy)
        await self._router.configure(self._live)
        return self._router.app

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve's `user_config` (fields of `LiveConfig`), at the start and whenever it changes."""
        try:
            self._live = LiveConfig.model_validate(user_config or {})
        except ValidationError as error:
            # Raising would cost the replica: what it does now goes on.
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
            log.error("user_config refused, the old one goes on: %s", wrong)
            return
        if self._router is not None:
            await self._router.configure(self._live)

    async def state(self) -> dict[str, object]:
        """What `/ready` shows to an admin."""
        assert self._router is not None, "Serve builds the application before it sends requests"
        return self._router.state()

    async def choose(self, body: dict[str, Any], path: str = _CHAT) -> dict[str, object]:
        """Which engine a request would go to: arm, propensity, probabilities of all arms, policy. Nothing is sent."""
        return await self._dispatcher.explain(parse(path, orjson.dumps(body)))

    async def send(self, body: dict[str, Any], path: str = _CHAT, arm: str | None = None) -> dict[str, Any]:
        """Route a request and answer it whole: `status`, `headers`, `body` (decoded JSON). `arm` pins the engine."""
        reply = _Collected()
        await self._dispatcher.run(_incoming({**body, "stream": False}, path, arm), reply)
        return {"status": reply.status, "headers": dict(reply.headers), "body": orjson.loads(b"".join(reply.parts))}

    async def stream(self, body: dict[str, Any], path: str = _CHAT, arm: str | None = None) -> AsyncIterator[bytes]:
        """Route a request and yield the bytes of its server-sent events as they come."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(64)

        async def work() -> None:
            try:
                await self._dispatcher.run(_incoming({**body, "stream": True}, path, arm), _Queued(queue))
            finally:
                task = asyncio.current_task()
                if task is not None and not task.cancelling():
                    await queue.put(None)

        task = asyncio.create_task(work())
        try:
            while (data := await queue.get()) is not None:
                yield data
            await task
        finally:
            task.cancel()

    async def use_policy(self, name: str) -> str:
        """Take another policy into service on this replica; `handle.broadcast("use_policy", name)` does so on all."""
        assert self._router is not None, "Serve builds the application before it sends requests"
        return await self._router.use_policy(name)

    @property
    def _dispatcher(self) -> Dispatcher:
        assert self._router is not None, "Serve builds the application before it sends requests"
        return self._router.dispatcher


class _Collected:
    """A reply that is kept."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = []
        self.parts: list[bytes] = []

    async def start(self, status: int, headers: Headers) -> None:
        self.status, self.headers = status, headers

    async def write(self, data: bytes) -> None:
        self.parts.append(data)

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        self.status, self.headers, self.parts = status, headers, [body]


class _Queued:
    """A reply that goes to a bounded queue, so that a slow reader slows the engine's stream."""

    def __init__(self, queue: "asyncio.Queue[bytes | None]") -> None:
        self._queue = queue

    async def start(self, status: int, headers: Headers) -> None:
        return

    async def write(self, data: bytes) -> None:
        await self._queue.put(data)

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        await self._queue.put(body)


def _incoming(body: dict[str, Any], path: str, arm: str | None) -> Incoming:
    accepted = time.perf_counter()
    request = parse(path, orjson.dumps(body))
    headers = [("content-type", "application/json")]
    return Incoming(request, "POST", path, headers, uuid.uuid4().hex, accepted, arm)


async def _broadcast_policy(name: str) -> list[str]:
    """Take a policy into service on every replica of this deployment. Raises `PolicyRefused`."""
    context = serve.get_replica_context()
    handle = serve.get_deployment_handle(context.deployment, context.app_name)
    try:
        return [str(found) for found in await handle.broadcast("use_policy", name).results_async()]
    except RayTaskError as error:
        raise PolicyRefused(str(error.cause)) from error


def _static(url: str) -> Callable[[], Awaitable[list[str]]]:
    async def addresses() -> list[str]:
        return [url]

    return addresses


def _addresses(handle: DeploymentHandle) -> Callable[[], Awaitable[list[str]]]:
    async def addresses() -> list[str]:
        answers = await handle.broadcast("address").results_async(return_exceptions=True)
        return [answer for answer in answers if isinstance(answer, str)]

    return addresses
