"""The router as an ASGI application with the OpenAI API: authentication, request parsing, error responses."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from fnmatch import fnmatchcase
from typing import Any

from starlette.types import Receive, Scope, Send

from draftpick.router.config.router_config import RouterConfig
from draftpick.router.errors import NotAllowed, NotFound, RequestError
from draftpick.router.http.admin import AdminPages, Owner
from draftpick.router.http.asgi import AsgiSink, HttpRequest
from draftpick.router.http.auth import ANONYMOUS, Key, Keyring, require_scope
from draftpick.router.http.body import BodyBudget
from draftpick.router.http.openapi import description
from draftpick.router.http.request_headers import REQUEST_HEADERS, SCOPED_HEADERS, parse_seconds
from draftpick.router.http.ui import ui_pages
from draftpick.router.monitoring.fleet_metrics import CONTENT_TYPE
from draftpick.router.openai_request import parse
from draftpick.router.parts import Parts
from draftpick.router.request.admission import PRIORITIES
from draftpick.router.request.api_forms import error_body
from draftpick.router.request.state import ClientRequest

_CLIENT_TIMEOUTS = ("x-stainless-read-timeout", "x-stainless-timeout")
"""Header with the timeout of OpenAI's own clients, in seconds."""
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
_MODEL = "/v1/models/"


class RouterApp:
    """ASGI application: its own pages; all other paths are forwarded to engines."""

    def __init__(self, parts: Parts, *, model: str, config: RouterConfig, owner: Owner, keys: Keyring) -> None:
        self._catalog = parts.catalog
        self._dispatcher, self._metrics_counts = parts.dispatcher, parts.metrics
        self._model, self._config, self._owner, self._keys = model, config, owner, keys
        self._created = int(time.time())
        self._paths = frozenset(config.paths)
        self._patterns = tuple(path for path in config.paths if "*" in path)
        self._bodies = BodyBudget(config)
        admin = AdminPages(parts, owner, keys, self._bodies, model)
        self._own: dict[tuple[str, str], Callable[[HttpRequest, AsgiSink], Awaitable[None]]] = {
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
        reply = AsgiSink(send)
        try:
            asked = HttpRequest.from_scope(scope, receive, accepted, self._config)
            if page := self._own.get((scope["method"], asked.path)):
                await page(asked, reply)
            elif scope["method"] == "GET" and asked.path.startswith(_MODEL):
                await self._model_page(asked, reply)
            else:
                await self._forward(asked, reply)
        except RequestError as error:
            self._metrics_counts.count_error(error)
            await reply.json(error.status, error_body(scope["path"], error), error.headers())

    async def _forward(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        """Forward a request to an engine, and its answer to the client."""
        key = self._key(http_request)
        if http_request.scope["method"] not in _METHODS:
            raise NotAllowed(f"the method {http_request.scope['method']} is not allowed", code="method_not_allowed")
        if http_request.path not in self._paths and not self._matches_pattern(http_request.path):
            require_scope(key, "admin", f"the path {http_request.path[:100]!r}")
        for name, scope in SCOPED_HEADERS:
            if name in http_request.header_values:
                require_scope(key, scope, f"the header {name}")
        if key is ANONYMOUS:
            await self._route(http_request, key, reply)
            return
        self._keys.check_rate_limit(key)
        with self._keys.concurrent(key):
            await self._route(http_request, key, reply)

    async def _route(self, http_request: HttpRequest, key: Key, reply: AsgiSink) -> None:
        """Read the body, and dispatch the request."""
        async with self._bodies.body(http_request) as body:
            if body is not None:
                incoming = self._client_request(http_request, key, body)
                if await _until_disconnect(http_request.receive, self._dispatcher.run(incoming, reply)):
                    await reply.finish()

    def _key(self, http_request: HttpRequest) -> Key:
        """The key of a request. Raises `Unauthorized`."""
        if not self._keys.enabled:
            return ANONYMOUS
        values = http_request.header_values
        return self._keys.authenticate(values.get("authorization"), values.get("x-api-key"))

    def _matches_pattern(self, path: str) -> bool:
        """True if a configured pattern opens a path to every key."""
        return any(fnmatchcase(path, pattern) for pattern in self._patterns)

    def _client_request(self, http_request: HttpRequest, key: Key, body: bytes) -> ClientRequest:
        sent = http_request.headers
        if self._keys.enabled:  # the router's key, not the engine's
            sent = [(name, value) for name, value in sent if name not in ("authorization", "x-api-key")]
        id = uuid.uuid4().hex
        return ClientRequest(
            request=parse(http_request.path, body, self._config, keep_fields=self._config.resume_streams),
            method=http_request.scope["method"],
            target=http_request.target(),
            headers=sent,
            id=id,
            accepted=time.perf_counter(),
            key=self._keys.name_of(key),
            show_routing=key.show_routing,
            count_tokens=(lambda tokens: self._keys.count_tokens(key, tokens)) if key.tokens_per_minute else None,
            **_client_fields(http_request.header_values, key, http_request.accepted, id),
        )

    # --- its own pages ---

    async def _health(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        await reply.json(200, {"status": "ok"})

    async def _ready(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        state = self._owner.state()
        if self._keys.enabled:  # orchestrators probe without a key; details are for admins
            try:
                require_scope(self._key(http_request), "admin", "the state")
            except RequestError:
                state = {"ready": state["ready"]}
        await reply.json(200 if state["ready"] else 503, state)

    async def _metrics(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        require_scope(self._key(http_request), "admin", "the metrics")
        page = (await self._owner.metrics()).encode()
        await reply.send_complete(200, [("content-type", CONTENT_TYPE)], page)

    async def _models(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        self._key(http_request)
        await reply.json(200, {"object": "list", "data": await self._cards()})

    async def _model_page(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        self._key(http_request)
        name = http_request.path.removeprefix(_MODEL)
        card = next((card for card in await self._cards() if card["id"] == name), None)
        if card is None:
            raise NotFound(f"The model {name[:100]!r} does not exist.", param="model", code="model_not_found")
        await reply.json(200, card)

    async def _cards(self) -> list[dict[str, Any]]:
        """The models of the engines, as they describe them; the target alone if none answers."""
        if not self._catalog.models:
            await self._catalog.poll()
        own = {"id": self._model, "object": "model", "created": self._created, "owned_by": "draftpick"}
        cards = self._catalog.cards(self._model)
        return cards if any(card["id"] == self._model for card in cards) else [own, *cards]

    async def _openapi(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        await reply.json(200, description(self._model))


def _client_fields(header_values: dict[str, str], key: Key, accepted: float, id: str) -> dict[str, Any]:
    """Fields of `ClientRequest` set by headers and the client's key. Raises `BadRequest`."""
    fields: dict[str, Any] = {
        "request_id": None,
        "priority": min(0, PRIORITIES[key.priority]),
        "deadline": None,
        "explore": key.explore,
        "objective": key.objective,
    }
    if not header_values.keys().isdisjoint(_CLIENT_TIMEOUTS):
        fields["deadline"] = _client_deadline(header_values, accepted)
    for header in REQUEST_HEADERS:
        if (text := header_values.get(header.name)) is not None:
            fields[header.field] = header.parse(text, key, accepted)
    fields["request_id"] = fields["request_id"] or id
    return fields


def _client_deadline(header_values: dict[str, str], accepted: float) -> float | None:
    """Deadline of OpenAI's own clients for the first byte, from their headers."""
    waits = [
        seconds
        for name in _CLIENT_TIMEOUTS
        if name in header_values and (seconds := parse_seconds(header_values[name]))
    ]
    return accepted + min(waits) if waits else None


async def _until_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` to its end (True), or cancel it when the client disconnects (False)."""
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
