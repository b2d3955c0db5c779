"""The router as an ASGI application with the OpenAI API: authentication, request parsing, error responses."""

import asyncio
import time
import uuid
from collections.abc import Coroutine, Iterable
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from typing import Any

from starlette.types import Receive, Scope, Send

from draftpick.engines.http.client import Headers
from draftpick.router.config.router_config import RouterConfig
from draftpick.router.errors import Forbidden, NotAllowed, NotFound, RequestError
from draftpick.router.headers import CLIENT_REQUEST_ID, REQUEST_ID
from draftpick.router.http.access import Access
from draftpick.router.http.admin import AdminPages, Owner
from draftpick.router.http.asgi import AsgiSink, BodyBudget, BufferingSink, HttpRequest
from draftpick.router.http.auth import ANONYMOUS, Key, Keyring, require_scope
from draftpick.router.http.lease_pages import LeasePages
from draftpick.router.http.openapi import description
from draftpick.router.http.request_headers import REQUEST_HEADERS, SCOPED_HEADERS, client_request_id, parse_seconds
from draftpick.router.http.ui import Page, ui_pages
from draftpick.router.monitoring.fleet_metrics import CONTENT_TYPE
from draftpick.router.openai_request import parse
from draftpick.router.parts import Parts
from draftpick.router.request.admission import PRIORITIES
from draftpick.router.request.api_forms import error_body, error_event
from draftpick.router.request.forwarded_headers import headers_for_engine
from draftpick.router.request.state import ClientRequest
from draftpick.router.supervision import Supervisor

_CLIENT_TIMEOUTS = ("x-stainless-read-timeout", "x-stainless-timeout")
"""Header with the timeout of OpenAI's own clients, in seconds."""
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
_MODEL = "/v1/models/"


class RouterApp:
    """ASGI application: its own pages; all other paths are forwarded to engines."""

    def __init__(self, parts: Parts, *, model: str, config: RouterConfig, owner: Owner, keys: Keyring) -> None:
        self._catalog = parts.catalog
        self._dispatcher, self._metrics_counts = parts.dispatcher, parts.metrics
        self._supervisor = Supervisor(parts.metrics.failures)
        self._model, self._config, self._owner, self._keys = model, config, owner, keys
        self._created = int(time.time())
        self._paths = frozenset(config.paths)
        self._patterns = tuple(path for path in config.paths if "*" in path)
        self.bodies = BodyBudget(config)
        self._access = Access(keys, config.hosts, local_admin=config.local_admin is not False)
        admin = AdminPages(parts, owner, self._access, self.bodies, model)
        leases = LeasePages(config, parts.leases, self._access, self.bodies, self.client_request, _until_disconnect)
        pages: dict[tuple[str, str], Page] = {
            **admin.pages,
            **leases.pages,
            **ui_pages(),
            ("GET", "/health"): self._health,
            ("GET", "/ready"): self._ready,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/v1/models"): self._models,
            ("GET", "/openapi.json"): self._openapi,
        }
        self._own: dict[str, dict[str, Page]] = {}
        for (method, path), page in pages.items():
            self._own.setdefault(path, {})[method] = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._not_http(scope, receive, send)
            return
        accepted = time.perf_counter()
        reply = BufferingSink(send) if scope.get("http_version") == "1.0" else AsgiSink(send)
        try:
            asked = HttpRequest.from_scope(scope, receive, accepted, self._config)
            if methods := self._own.get(asked.path):
                # The server sends no body in answer to HEAD.
                page = methods.get("GET" if scope["method"] == "HEAD" else scope["method"])
                if page is None:
                    raise self._not_allowed(asked, {*methods, *(("HEAD",) if "GET" in methods else ())})
                await page(asked, reply)
            elif asked.path.startswith(_MODEL) and scope["method"] in ("GET", "HEAD"):
                await self._model_page(asked, reply)
            else:
                await self._forward(asked, reply)
        except RequestError as error:
            self._metrics_counts.count_error(error)
            await _send_error(scope, reply, error)
        except Exception as error:  # whatever it is, it is no text for clients, nor one line of the log for each
            self._supervisor.report("http", error)
            await _send_error(scope, reply, RequestError("the router failed", code="internal_error"))

    async def _not_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        if scope["type"] == "websocket":  # behind servers that offer it; see draftpick.router.http.protocol
            await send({"type": "websocket.close"})
            return
        while message["type"] == "lifespan.startup":
            await self._owner.start()
            await send({"type": "lifespan.startup.complete"})
            message = await receive()
        await self._owner.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _forward(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        """Forward a request to an engine, and its answer to the client."""
        key = self.admit(http_request)
        with nullcontext() if key is ANONYMOUS else self.concurrent(key):
            async with self.bodies.body(http_request) as body:
                if body is not None:
                    incoming = self.client_request(http_request, key, body)
                    reply.request_id = incoming.request_id
                    if await _until_disconnect(http_request.receive, self._dispatcher.run(incoming, reply)):
                        await reply.finish()

    def admit(self, http_request: HttpRequest) -> Key:
        """The key of a request for an engine. Raises `RequestError` for one that may not be sent, or not now."""
        key = self._access.key(http_request)
        if http_request.scope["method"] not in _METHODS:
            raise self._not_allowed(http_request, _METHODS)
        if http_request.path not in self._paths and not self._is_open(http_request.path):
            self._require_beyond_paths(http_request, key)
        if key is not ANONYMOUS:
            for name, scope in SCOPED_HEADERS:
                if name in http_request.header_values:
                    require_scope(key, scope, f"the header {name}")
            self._keys.check_rate_limit(key)
        return key

    @property
    def keys_enabled(self) -> bool:
        """Whether requests need a key, in which case the engines do not get their authorization."""
        return self._keys.enabled

    def concurrent(self, key: Key) -> AbstractContextManager[None]:
        """Count a request of a key during a block. Raises `RateLimited`."""
        return nullcontext() if key is ANONYMOUS else self._keys.concurrent(key)

    def _is_open(self, path: str) -> bool:
        """True if a configured pattern opens a path to every client, or it is an open path with a final slash."""
        path = path.rstrip("/")
        return path in self._paths or any(fnmatchcase(path, pattern) for pattern in self._patterns)

    def _require_beyond_paths(self, http_request: HttpRequest, key: Key) -> None:
        """Other paths of the engines need a key with the scope `admin`: being on this machine is not enough."""
        if key is ANONYMOUS:
            raise Forbidden(f"the path {http_request.path[:100]!r} is not among router.paths", code="path_not_open")
        require_scope(key, "admin", f"the path {http_request.path[:100]!r}")

    @staticmethod
    def _not_allowed(http_request: HttpRequest, methods: Iterable[str]) -> NotAllowed:
        return NotAllowed(f"the method {http_request.scope['method']} is not allowed", allowed=methods)

    def client_request(self, http_request: HttpRequest, key: Key, body: bytes) -> ClientRequest:
        """Parse what a decision needs of a request. Raises `BadRequest`."""
        id = uuid.uuid4().hex
        fields = _client_fields(http_request.header_values, key, http_request.accepted, id)
        # Without keys the authorization is for the engine.
        with_authorization = not self._keys.enabled
        return ClientRequest(
            request=parse(http_request.path, body, self._config, keep_fields=self._config.resume_streams),
            method=http_request.scope["method"],
            target=http_request.target,
            headers=headers_for_engine(
                http_request.headers, fields["request_id"], with_authorization=with_authorization
            ),
            id=id,
            accepted=time.perf_counter(),
            key="" if key is ANONYMOUS else self._keys.name_of(key),
            show_routing=key.show_routing,
            authorized=self._keys.enabled,
            count_tokens=(lambda tokens: self._keys.count_tokens(key, tokens)) if key.tokens_per_minute else None,
            **fields,
        )

    # --- its own pages ---

    async def _health(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        await reply.json(200, {"status": "ok"})

    async def _ready(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        state = self._owner.state()
        try:  # orchestrators probe without a key; details are for admins
            self._access.require_admin(http_request, "the state")
        except RequestError:
            state = {"ready": state["ready"]}
        await reply.json(200 if state["ready"] else 503, state)

    async def _metrics(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        self._access.require_admin(http_request, "the metrics")
        page = (await self._owner.metrics()).encode()
        await reply.send_complete(200, [("content-type", CONTENT_TYPE)], page)

    async def _models(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        self._access.key(http_request)
        await reply.json(200, {"object": "list", "data": await self._cards()})

    async def _model_page(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        self._access.key(http_request)
        name = http_request.path.removeprefix(_MODEL)
        card = next((card for card in await self._cards() if card["id"] == name), None)
        if card is None:
            raise NotFound(f"The model `{name[:100]}` does not exist.", param="model", code="model_not_found")
        await reply.json(200, card)

    async def _cards(self) -> list[dict[str, Any]]:
        """The models of the engines, as they describe them; the target alone if none answers."""
        await self._catalog.refresh()
        own = {"id": self._model, "object": "model", "created": self._created, "owned_by": "draftpick"}
        cards = self._catalog.cards(self._model)
        return cards if any(card["id"] == self._model for card in cards) else [own, *cards]

    async def _openapi(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        await reply.json(200, description(self._model))


async def _send_error(scope: Scope, reply: AsgiSink, error: RequestError) -> None:
    """Answer with an error; a stream that is open already gets it as its last event."""
    if reply.finished:
        return
    if reply.started:
        await reply.write(error_event(scope["path"], error.message, error.code or error.type, 0))
        await reply.finish()
        return
    await reply.json(error.status, error_body(scope["path"], error), error_headers(scope, error, reply.request_id))


def error_headers(scope: Scope, error: RequestError, request_id: str) -> Headers:
    """Headers of the answer with an error. `request_id`: empty if none was given to the request yet."""
    sent = dict(scope["headers"]).get(CLIENT_REQUEST_ID.encode(), b"").decode("latin-1")
    request_id = request_id or client_request_id(sent) or uuid.uuid4().hex
    return [*error.headers(), (REQUEST_ID, request_id), (CLIENT_REQUEST_ID, request_id)]


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
