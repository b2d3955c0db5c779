"""Leases over HTTP: `POST /v1/route` and `POST /v1/outcomes` for gateways, and the inbox of the engines' reports."""

import hmac
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from draftpick.engines.reporting.report import BATCH, PATH, Batch
from draftpick.router.config.router_config import RouterConfig
from draftpick.router.errors import BadRequest, NotFound, RequestError, Unauthorized
from draftpick.router.http.access import Access
from draftpick.router.http.admin import CHAT
from draftpick.router.http.asgi import AsgiSink, BodyBudget, HttpRequest
from draftpick.router.http.auth import ANONYMOUS, Key
from draftpick.router.request.leases import Leases
from draftpick.router.request.state import ClientRequest

ROUTE = "/v1/route"
_LONGEST_NAME = 100
MakeRequest = Callable[[HttpRequest, Key, bytes], ClientRequest]
UntilDisconnect = Callable[[Receive, Coroutine[Any, Any, None]], Awaitable[bool]]


class LeasePages:
    """For keys with the scope `admin`: a lease names addresses of engines, and its outcome moves what is learned."""

    def __init__(
        self,
        config: RouterConfig,
        leases: Leases,
        access: Access,
        bodies: BodyBudget,
        make_request: MakeRequest,
        until_disconnect: UntilDisconnect,
    ) -> None:
        self._config, self._leases, self._access, self._bodies = config, leases, access, bodies
        self._make_request, self._until_disconnect = make_request, until_disconnect

    @property
    def pages(self) -> dict[tuple[str, str], Callable[[HttpRequest, AsgiSink], Awaitable[None]]]:
        """Endpoints by method and path."""
        return {("POST", ROUTE): self._route, ("POST", PATH): self._outcomes}

    async def _route(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        """Decide for a body, as it would be sent to `?path=`."""
        key = self._admin(http_request, "to get a lease")
        query = parse_qs(http_request.scope.get("query_string", b"").decode("latin-1"))
        path = query.get("path", [CHAT])[-1]
        if path not in self._config.paths:
            raise BadRequest("is not among router.paths", param="path", code="path_not_open")
        if key is not ANONYMOUS:
            self._access.keys.check_rate_limit(key)
        async with self._bodies.body(http_request) as body:
            if body is None:
                return
            made = self._make_request(replace(http_request, path=path), key, body)
        reply.request_id = made.request_id
        await self._until_disconnect(http_request.receive, self._grant(replace(made, target=path), reply))

    async def _grant(self, client_request: ClientRequest, reply: AsgiSink) -> None:
        await reply.json(200, (await self._leases.open(client_request)).as_json())

    async def _outcomes(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        self._admin(http_request, "to tell outcomes")
        batch = await _read_batch(http_request, self._bodies, self._leases)
        if batch is not None:
            await reply.json(200, {"outcomes": self._leases.tell_all(batch.outcomes, {})})

    def _admin(self, http_request: HttpRequest, purpose: str) -> Key:
        key = self._access.require_admin(http_request, purpose)
        if not self._config.leases.enabled:
            raise NotFound("router.leases.enabled is false", code="leases_off")
        return key


class ReportInbox:
    """ASGI application, at an address of its own, to which engines report: each router gets its own leases' reports,
    however many stand behind one address. They come with the shared secret."""

    def __init__(self, config: RouterConfig, leases: Leases, secret: str) -> None:
        self._config, self._leases, self._secret, self._bodies = config, leases, secret, BodyBudget(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        reply = AsgiSink(send)
        try:
            await self._take(HttpRequest.from_scope(scope, receive, time.perf_counter(), self._config), reply)
        except RequestError as error:
            await reply.json(error.status, error.body(), error.headers())

    async def _take(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        if (http_request.scope["method"], http_request.path) != ("POST", PATH):
            raise NotFound("engines report here", code="not_found")
        given = http_request.header_values.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self._secret}".encode()):
            self._leases.rejected["forged"] += 1
            raise Unauthorized("the secret for reports is needed")
        batch = await _read_batch(http_request, self._bodies, self._leases)
        if batch is not None:
            await reply.json(200, {"outcomes": self._leases.tell_all(batch.outcomes, batch.lost)})


async def _read_batch(http_request: HttpRequest, bodies: BodyBudget, leases: Leases) -> Batch | None:
    """The reports in a body; None if the client disconnects. Raises `BadRequest` for anything else."""
    async with bodies.body(http_request) as body:
        if body is None:
            return None
        try:
            return BATCH.validate_json(body)
        except ValidationError as error:
            leases.rejected["invalid"] += 1
            first = error.errors(include_input=False)[0]
            param = ".".join(map(str, first["loc"]))[:_LONGEST_NAME] or None
            raise BadRequest(first["msg"], param=param, code="bad_outcomes") from None
