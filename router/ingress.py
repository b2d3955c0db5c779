"""The router as an ASGI application that speaks the OpenAI API: who may ask, what is read of it, how errors look."""

import asyncio
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import orjson
from starlette.types import Message, Receive, Scope, Send

from engines.client import Headers
from router.admission import PRIORITIES
from router.attempt import Incoming
from router.config import RouterConfig
from router.dispatch import Dispatcher
from router.errors import BadRequest, NotAllowed, PolicyRefused, RequestError, TooLarge
from router.fleet_metrics import CONTENT_TYPE
from router.keys import Key, Keyring, need
from router.openai import parse
from router.openapi import description

PIN_HEADER = "x-draftpick-arm"
TIMEOUT_HEADER = "x-draftpick-timeout"
PRIORITY_HEADER = "x-draftpick-priority"
_CLIENT_TIMEOUTS = ("x-stainless-read-timeout", "x-stainless-timeout")
"""Where OpenAI's own clients say, in seconds, how long they wait."""

_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
_MAX_HEADERS = 128
_REQUEST_ID = re.compile(r"[\w.:/@=+-]{1,128}", re.ASCII)
_CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the application asks of its owner."""

    ready: Callable[[], dict[str, object]]
    start: Callable[[], Awaitable[None]]
    stop: Callable[[], Awaitable[None]]
    use_policy: Callable[[str], Awaitable[list[str]]]
    metrics: Callable[[], Awaitable[str]]


class RouterApp:
    """ASGI application: a few pages of its own; every other path goes to an engine."""

    def __init__(
        self, dispatcher: Dispatcher, *, model: str, config: RouterConfig, hooks: Hooks, keys: Keyring
    ) -> None:
        self._dispatcher, self._model, self._config = dispatcher, model, config
        self._hooks, self._keys = hooks, keys
        self._created = int(time.time())
        self._paths = frozenset(config.paths)
        self._patterns = tuple(path for path in config.paths if "*" in path)
        self._own: dict[tuple[str, str], Callable[[_Asked, _AsgiReply], Awaitable[None]]] = {
            ("GET", "/health"): self._health,
            ("GET", "/ready"): self._ready,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/v1/models"): self._models,
            ("GET", "/openapi.json"): self._openapi,
            ("POST", "/v1/route/explain"): self._explain,
            ("POST", "/v1/route/policy"): self._use_policy,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self._hooks.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._hooks.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        accepted = time.perf_counter()
        reply = _AsgiReply(send)
        try:
            asked = _Asked.of(scope, receive, accepted, self._config)
            if page := self._own.get((scope["method"], asked.path)):
                await page(asked, reply)
            else:
                await self._forward(asked, reply)
        except RequestError as error:
            await reply.json(error.status, error.body(), error.headers())

    async def _forward(self, asked: "_Asked", reply: "_AsgiReply") -> None:
        """Send a request to an engine, and its answer back."""
        key = self._key(asked)
        if asked.scope["method"] not in _METHODS:
            raise NotAllowed(f"{asked.scope['method']} is not answered here", code="method_not_allowed")
        if not self._is_open(asked.path):
            need(key, "admin", f"the path {asked.path[:100]!r}")
        if PIN_HEADER in asked.named:
            need(key, "admin", f"the header {PIN_HEADER}")
        self._keys.take(key)
        if (body := await asked.body()) is not None:
            incoming = self._incoming(asked, key, body)
            if await _unless_gone(asked.receive, self._dispatcher.run(incoming, reply)):
                await reply.finish()

    def _key(self, asked: "_Asked") -> Key:
        """Whose request it is. Raises `Unauthorized`."""
        return self._keys.authenticate(asked.named.get("authorization"))

    def _is_open(self, path: str) -> bool:
        """Whether any key may ask for a path."""
        return path in self._paths or any(fnmatchcase(path, pattern) for pattern in self._patterns)

    def _incoming(self, asked: "_Asked", key: Key, body: bytes) -> Incoming:
        named, headers = asked.named, asked.headers
        if self._keys:  # ours, not the engine's
            headers = [(name, value) for name, value in headers if name != "authorization"]
        request_id = named.get("x-request-id", "")
        return Incoming(
            request=parse(asked.path, body, self._config.max_json_depth),
            method=asked.scope["method"],
            target=asked.target(),
            headers=headers,
            request_id=request_id if _REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex,
            accepted=asked.accepted,
            pin=named.get(PIN_HEADER),
            key=key.name,
            priority=_priority(named, key),
            deadline=_deadline(named, asked.accepted),
            charge=(lambda tokens: self._keys.charge(key, tokens)) if key.tokens_per_minute else None,
        )

    # --- its own pages ---

    async def _health(self, asked: "_Asked", reply: "_AsgiReply") -> None:
        await reply.json(200, {"status": "ok"})

    async def _ready(self, asked: "_Asked", reply: "_AsgiReply") -> None:
        state = self._hooks.ready()
        if self._keys:  # probes of an orchestrator carry no key; details are for admins
            try:
                need(self._key(asked), "admin", "the state")
            except RequestError:
                state = {"ready": state["ready"]}
        await reply.json(200 if state["ready"] else 503, state)

    async def _metrics(self, asked: "_Asked", reply: "_AsgiReply") -> None:
        need(self._key(asked), "admin", "the metrics")
        page = (await self._hooks.metrics()).encode()
        await reply.whole(200, [("content-type", CONTENT_TYPE)], page)

    async def _models(self, asked: "_Asked", reply: "_AsgiReply") -> None:
        self._key(asked)
        model = {"id": self._model, "object": "model", "created": self._created, "owned_by": "draftpick"}
        await reply.json(200, {"object": "list", "data": [model]})

    async def _openapi(self, asked: "_Asked", reply: "_AsgiReply") -> None:
        await reply.json(200, description(self._model))

    async def _explain(self, asked: "_Asked", reply: "_AsgiReply") -> None:
        need(self._key(asked), "admin", "to explain")
        if (body := await asked.body()) is not None:
            await reply.json(200, await self._dispatcher.explain(parse(_CHAT, body, self._config.max_json_depth)))

    async def _use_policy(self, asked: "_Asked", reply: "_AsgiReply") -> None:
        need(self._key(asked), "admin", "to change the policy")
        if not self._keys:
            raise NotAllowed("this needs keys: without them anybody could do it", code="keys_needed")
        if (body := await asked.body()) is None:
            return
        try:
            name = orjson.loads(body)["policy"]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise BadRequest('the body must be {"policy": <name or folder>}', param="policy") from error
        if not isinstance(name, str) or not name:
            raise BadRequest("policy must be a name or a folder", param="policy")
        try:
            await reply.json(200, {"policies": await self._hooks.use_policy(name)})
        except PolicyRefused as error:
            raise BadRequest(str(error), param="policy", code="policy_refused") from error


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request before its body is read. `headers` are lower case, `named` the last of each name."""

    scope: Scope
    receive: Receive
    accepted: float
    path: str
    headers: Headers
    named: dict[str, str]
    max_body_bytes: int

    @classmethod
    def of(cls, scope: Scope, receive: Receive, accepted: float, config: RouterConfig) -> "_Asked":
        """Raises `TooLarge` for too many headers, `BadRequest` for a path that is none."""
        raw = scope["headers"]
        if len(raw) > _MAX_HEADERS or sum(len(k) + len(v) for k, v in raw) > config.max_header_bytes:
            raise TooLarge(
                f"more than {_MAX_HEADERS} headers or {config.max_header_bytes} bytes of them",
                code="headers_too_large",
            )
        headers = [(k.decode("latin-1").lower(), v.decode("latin-1")) for k, v in raw]
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        if not path.startswith("/"):
            raise BadRequest("the path must begin with /", code="bad_path")
        return cls(scope, receive, accepted, path, headers, dict(headers), config.max_body_bytes)

    def target(self) -> str:
        """Path and query as they were sent, percent signs and all, below the route prefix."""
        raw: str = (self.scope.get("raw_path") or self.scope["path"].encode()).decode("latin-1").split("?")[0]
        query = self.scope.get("query_string", b"").decode("latin-1")
        return raw.removeprefix(self.scope.get("root_path", "")) + (f"?{query}" if query else "")

    async def body(self) -> bytes | None:
        """The whole body; None when the client went away before its end. Raises `TooLarge`."""
        parts: list[bytes] = []
        size = 0
        while True:
            message: Message = await self.receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > self.max_body_bytes:
                raise TooLarge(f"the body is larger than {self.max_body_bytes} bytes", code="body_too_large")
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)


class _AsgiReply:
    """Sends an answer through ASGI."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._finished = False

    async def start(self, status: int, headers: Headers) -> None:
        raw = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        await self.start(status, [*headers, ("content-length", str(len(body)))])
        await self._last(body)

    async def finish(self) -> None:
        """End an answer that was written in parts."""
        if not self._finished:
            await self._last(b"")

    async def _last(self, body: bytes) -> None:
        self._finished = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def json(self, status: int, content: dict[str, object], headers: Headers | None = None) -> None:
        await self.whole(status, [("content-type", "application/json"), *(headers or [])], orjson.dumps(content))


def _priority(named: dict[str, str], key: Key) -> int:
    """The priority that a request asks for, at most its key's own."""
    name = named.get(PRIORITY_HEADER)
    if name is None:
        return min(0, PRIORITIES[key.priority])
    if name not in PRIORITIES:
        raise BadRequest(f"must be one of: {', '.join(PRIORITIES)}", param=PRIORITY_HEADER, code="bad_priority")
    return min(PRIORITIES[name], PRIORITIES[key.priority])


def _deadline(named: dict[str, str], accepted: float) -> float | None:
    """When the client stops waiting for a first byte, by our header or by those of OpenAI's clients."""
    if (own := named.get(TIMEOUT_HEADER)) is not None:
        if (seconds := _seconds(own)) is None:
            raise BadRequest("must be a positive number of seconds", param=TIMEOUT_HEADER, code="bad_timeout")
        return accepted + seconds
    waits = [seconds for name in _CLIENT_TIMEOUTS if name in named and (seconds := _seconds(named[name]))]
    return accepted + min(waits) if waits else None


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` to its end (True), or cancel it when the client goes away (False)."""
    own = asyncio.current_task()
    assert own is not None
    watch = asyncio.create_task(_disconnect(receive))

    def gone(_: asyncio.Task[None]) -> None:
        own.cancel()

    watch.add_done_callback(gone)
    try:
        await work
        return True
    except asyncio.CancelledError:
        if watch.done() and own.uncancel() == 0:
            return False
        raise
    finally:
        watch.remove_done_callback(gone)
        watch.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
