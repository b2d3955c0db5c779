"""The router as an ASGI application that speaks the OpenAI API: who may ask, what is read of it, how errors look."""

import asyncio
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from fnmatch import fnmatchcase
from typing import Any

from starlette.types import Receive, Scope, Send

from router import headers
from router.admin import AdminPages, Owner
from router.admission import PRIORITIES
from router.asgi import AsgiReply, Asked
from router.attempt import Incoming
from router.config import RouterConfig
from router.errors import BadRequest, NotAllowed, RequestError
from router.fleet_metrics import CONTENT_TYPE
from router.keys import Key, Keyring, need
from router.openai import parse
from router.openapi import description
from router.parts import Parts
from router.ui import ui_pages

_CLIENT_TIMEOUTS = ("x-stainless-read-timeout", "x-stainless-timeout")
"""Where OpenAI's own clients say, in seconds, how long they wait."""

_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
_REQUEST_ID = re.compile(r"[\w.:/@=+-]{1,128}", re.ASCII)
_CHAT = "/v1/chat/completions"


class RouterApp:
    """ASGI application: a few pages of its own; every other path goes to an engine."""

    def __init__(self, parts: Parts, *, model: str, config: RouterConfig, owner: Owner, keys: Keyring) -> None:
        self._dispatcher, self._metrics_counts = parts.dispatcher, parts.metrics
        self._model, self._config, self._owner, self._keys = model, config, owner, keys
        self._created = int(time.time())
        self._paths = frozenset(config.paths)
        self._patterns = tuple(path for path in config.paths if "*" in path)
        admin = AdminPages(parts, owner, keys, config.max_json_depth, model)
        self._own: dict[tuple[str, str], Callable[[Asked, AsgiReply], Awaitable[None]]] = {
            **admin.pages,
            **ui_pages(),
            ("GET", "/health"): self._health,
            ("GET", "/ready"): self._ready,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/v1/models"): self._models,
            ("GET", "/openapi.json"): self._openapi,
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
                await self._owner.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._owner.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        accepted = time.perf_counter()
        reply = AsgiReply(send)
        try:
            asked = Asked.of(scope, receive, accepted, self._config)
            if page := self._own.get((scope["method"], asked.path)):
                await page(asked, reply)
            else:
                await self._forward(asked, reply)
        except RequestError as error:
            self._metrics_counts.refused(error)
            await reply.json(error.status, error.body(), error.headers())

    async def _forward(self, asked: Asked, reply: AsgiReply) -> None:
        """Send a request to an engine, and its answer back."""
        key = self._key(asked)
        if asked.scope["method"] not in _METHODS:
            raise NotAllowed(f"{asked.scope['method']} is not answered here", code="method_not_allowed")
        if not self._is_open(asked.path):
            need(key, "admin", f"the path {asked.path[:100]!r}")
        if headers.ARM in asked.named:
            need(key, "admin", f"the header {headers.ARM}")
        self._keys.take(key)
        if (body := await asked.body()) is not None:
            incoming = self._incoming(asked, key, body)
            if await _unless_gone(asked.receive, self._dispatcher.run(incoming, reply)):
                await reply.finish()

    def _key(self, asked: Asked) -> Key:
        """Whose request it is. Raises `Unauthorized`."""
        return self._keys.authenticate(asked.named.get("authorization"))

    def _is_open(self, path: str) -> bool:
        """Whether any key may ask for a path."""
        return path in self._paths or any(fnmatchcase(path, pattern) for pattern in self._patterns)

    def _incoming(self, asked: Asked, key: Key, body: bytes) -> Incoming:
        named, sent = asked.named, asked.headers
        if self._keys:  # ours, not the engine's
            sent = [(name, value) for name, value in sent if name != "authorization"]
        request_id = named.get(headers.CLIENT_REQUEST_ID, "")
        return Incoming(
            request=parse(asked.path, body, self._config.max_json_depth, keep_fields=self._config.continue_streams),
            method=asked.scope["method"],
            target=asked.target(),
            headers=sent,
            request_id=request_id if _REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex,
            accepted=asked.accepted,
            pin=named.get(headers.ARM),
            key=key.name,
            priority=_priority(named, key),
            deadline=_deadline(named, asked.accepted),
            explore=key.explore,
            objective=key.objective,
            charge=(lambda tokens: self._keys.charge(key, tokens)) if key.tokens_per_minute else None,
        )

    # --- its own pages ---

    async def _health(self, asked: Asked, reply: AsgiReply) -> None:
        await reply.json(200, {"status": "ok"})

    async def _ready(self, asked: Asked, reply: AsgiReply) -> None:
        state = self._owner.state()
        if self._keys:  # probes of an orchestrator carry no key; details are for admins
            try:
                need(self._key(asked), "admin", "the state")
            except RequestError:
                state = {"ready": state["ready"]}
        await reply.json(200 if state["ready"] else 503, state)

    async def _metrics(self, asked: Asked, reply: AsgiReply) -> None:
        need(self._key(asked), "admin", "the metrics")
        page = (await self._owner.metrics()).encode()
        await reply.whole(200, [("content-type", CONTENT_TYPE)], page)

    async def _models(self, asked: Asked, reply: AsgiReply) -> None:
        self._key(asked)
        model = {"id": self._model, "object": "model", "created": self._created, "owned_by": "draftpick"}
        await reply.json(200, {"object": "list", "data": [model]})

    async def _openapi(self, asked: Asked, reply: AsgiReply) -> None:
        await reply.json(200, description(self._model))


def _priority(named: dict[str, str], key: Key) -> int:
    """The priority that a request asks for, at most its key's own."""
    name = named.get(headers.PRIORITY)
    if name is None:
        return min(0, PRIORITIES[key.priority])
    if name not in PRIORITIES:
        raise BadRequest(f"must be one of: {', '.join(PRIORITIES)}", param=headers.PRIORITY, code="bad_priority")
    return min(PRIORITIES[name], PRIORITIES[key.priority])


def _deadline(named: dict[str, str], accepted: float) -> float | None:
    """When the client stops waiting for a first byte, by our header or by those of OpenAI's clients."""
    if (own := named.get(headers.TIMEOUT)) is not None:
        if (seconds := _seconds(own)) is None:
            raise BadRequest("must be a positive number of seconds", param=headers.TIMEOUT, code="bad_timeout")
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
