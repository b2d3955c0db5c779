"""The router as a Ray Serve deployment: HTTP for clients, a handle API for other deployments of the cluster."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import orjson
from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from draftpick.engines.http.client import Headers
from draftpick.router.config.router_config import LiveConfig, load_config
from draftpick.router.headers import CLIENT_REQUEST_ID
from draftpick.router.load.autoscaler import TargetSetter
from draftpick.router.monitoring.explain import explain
from draftpick.router.monitoring.ray_metrics import RayMetricsExporter
from draftpick.router.openai_request import parse
from draftpick.router.parts import Parts
from draftpick.router.request.state import ClientRequest
from draftpick.router.router import Addresses, Router, fixed_address
from draftpick.router.telemetry import logging as logs

log = logging.getLogger("draftpick.router")

_CHAT = "/v1/chat/completions"
_PATIENCE_S = 5.0


@serve.ingress()
class RouterDeployment:
    """One replica of the router.

    By handle: `choose.remote(body)` decides and sends nothing; `send.remote(body)` returns a complete answer;
    `options(stream=True).stream.remote(body)` yields the bytes of a streamed answer.
    """

    def __init__(self, config: dict[str, Any], handles: dict[str, DeploymentHandle]) -> None:
        self._config = load_config(config)
        if self._config.router.local_admin is None:  # Ray's proxies are on this machine, their clients may not be
            router = self._config.router.model_copy(update={"local_admin": False})
            self._config = self._config.model_copy(update={"router": router})
        logs.configure_in_serve()
        self._sources = {e.name: fixed_address(str(e.url)) for e in self._config.engines if e.url is not None}
        self._sources |= {arm: _addresses(handle) for arm, handle in handles.items()}
        scaled = {e.name for e in self._config.engines if e.deployment.autoscaling is not None}
        self._set_targets = {arm: _target_setter(handle) for arm, handle in handles.items() if arm in scaled}
        self._live = LiveConfig()
        self._router: Router | None = None

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        self._name = str(serve.get_replica_context().replica_id.unique_id)
        self._router = Router(self._config, self._sources, self._set_targets, name=self._name, peer_pages=_pages)
        await self._router.configure(self._live)
        exporter = RayMetricsExporter(self._router.collectors, self._name)
        self._metrics_task = asyncio.create_task(self._router.supervisor.run("ray_metrics", exporter.run))
        return without_request_id(self._router.app)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply Serve's `user_config` (fields of `LiveConfig`): at startup, and on every change."""
        try:
            self._live = LiveConfig.model_validate(user_config or {})
        except ValidationError as error:
            # Raising would end the replica; keep the current settings.
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
            log.error("user_config rejected, the old one stays active: %s", wrong)
            return
        if self._router is not None:
            await self._router.configure(self._live)

    async def state(self) -> dict[str, object]:
        """The state that `/ready` shows to an admin."""
        assert self._router is not None, "Serve builds the application before it sends requests"
        return self._router.state()

    async def choose(self, body: dict[str, Any], path: str = _CHAT) -> dict[str, object]:
        """Decide without sending: arm, propensity, probabilities of all arms, policy."""
        return await explain(self._parts, parse(path, orjson.dumps(body)))

    async def send(self, body: dict[str, Any], path: str = _CHAT, arm: str | None = None) -> dict[str, Any]:
        """Route a request; return `status`, `headers` and `body` (decoded JSON). `arm` pins the engine."""
        reply = _BufferingSink()
        await self._parts.dispatcher.run(_client_request({**body, "stream": False}, path, arm), reply)
        return {"status": reply.status, "headers": dict(reply.headers), "body": orjson.loads(b"".join(reply.parts))}

    async def stream(self, body: dict[str, Any], path: str = _CHAT, arm: str | None = None) -> AsyncIterator[bytes]:
        """Route a request and yield the bytes of its server-sent events as they arrive."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(64)

        async def work() -> None:
            try:
                await self._parts.dispatcher.run(
                    _client_request({**body, "stream": True}, path, arm), _QueueSink(queue)
                )
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
        """Activate another policy on this replica; `handle.broadcast("use_policy", name)` does so on all."""
        assert self._router is not None, "Serve builds the application before it sends requests"
        return await self._router.use_policy(name)

    async def own_metrics(self) -> tuple[str, str]:
        """The name of this replica, and its own metrics as a Prometheus page."""
        assert self._router is not None, "Serve builds the application before it sends requests"
        return self._name, await self._router.own_metrics()

    @property
    def _parts(self) -> Parts:
        assert self._router is not None, "Serve builds the application before it sends requests"
        return self._router.parts


def without_request_id(app: ASGIApp) -> ASGIApp:
    """`app` without `x-request-id` in its answers: Serve adds that of the request, and makes one if there is none."""
    ours = CLIENT_REQUEST_ID.encode()

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        async def pass_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [one for one in message["headers"] if one[0] != ours]}
            await send(message)

        await app(scope, receive, pass_on)

    return call


class _BufferingSink:
    """Buffers a complete answer."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Headers = []
        self.parts: list[bytes] = []

    async def start(self, status: int, headers: Headers) -> None:
        self.status, self.headers = status, headers

    async def write(self, data: bytes) -> None:
        self.parts.append(data)

    async def send_complete(self, status: int, headers: Headers, body: bytes) -> None:
        self.status, self.headers, self.parts = status, headers, [body]


class _QueueSink:
    """Writes an answer to a bounded queue: a slow reader slows the engine's stream (backpressure)."""

    def __init__(self, queue: "asyncio.Queue[bytes | None]") -> None:
        self._queue = queue

    async def start(self, status: int, headers: Headers) -> None:
        return

    async def write(self, data: bytes) -> None:
        await self._queue.put(data)

    async def send_complete(self, status: int, headers: Headers, body: bytes) -> None:
        await self._queue.put(body)


def _client_request(body: dict[str, Any], path: str, arm: str | None) -> ClientRequest:
    accepted = time.perf_counter()
    request = parse(path, orjson.dumps(body), keep_fields=True)
    headers = [("content-type", "application/json")]
    id = uuid.uuid4().hex
    return ClientRequest(request, "POST", path, headers, id, id, accepted, arm)


async def _pages() -> dict[str, str]:
    """Metrics pages by name, of all replicas of this deployment that answer in time."""
    context = serve.get_replica_context()
    try:
        asked = serve.get_deployment_handle(context.deployment, context.app_name).broadcast("own_metrics")
        async with asyncio.timeout(_PATIENCE_S):
            answers = await asked.results_async(return_exceptions=True)
    except (TimeoutError, RayError, RayServeException):  # while the cluster changes; the own page remains
        return {}
    return dict(answer for answer in answers if isinstance(answer, tuple))


def _target_setter(handle: DeploymentHandle) -> TargetSetter:
    async def tell(wanted: int) -> object:
        return await handle.broadcast("set_target", wanted).results_async(return_exceptions=True)

    return tell


def _addresses(handle: DeploymentHandle) -> Addresses:
    async def addresses() -> list[str]:
        answers = await handle.broadcast("address").results_async(return_exceptions=True)
        return [answer for answer in answers if isinstance(answer, str)]

    return addresses
