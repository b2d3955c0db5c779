"""Chooses the endpoint of each request that a gateway asks about: one stream of external processing, one lease.

The request is read as the router's own HTTP server reads it, with the same limits, keys and errors. The gateway sends
it; the engine reports the outcome (`draftpick.engines.reporting`).
"""

import asyncio
import logging
import time
from collections.abc import Mapping

from draftpick.engines.http.client import EngineAccess, Headers, endpoint_of
from draftpick.engines.reporting.report import Failure, OutcomeReport
from draftpick.router.epp import messages
from draftpick.router.epp.exchange import Change, Exchange, Left, Stream
from draftpick.router.errors import NoEngineAvailable, Overloaded, RequestError
from draftpick.router.headers import ARM, CLIENT_REQUEST_ID, POLICY, REQUEST_ID
from draftpick.router.http.app import RouterApp
from draftpick.router.http.asgi import HttpRequest
from draftpick.router.openai_request import ENGINE_ARGS, with_args
from draftpick.router.parts import Parts
from draftpick.router.request.forwarded_headers import not_for_engine
from draftpick.router.request.leases import Grant
from draftpick.router.request.state import ClientRequest

log = logging.getLogger("draftpick.router")

_SHED = 429
_NO_ACCESS = EngineAccess()
_REPORT_S, _NO_ANSWER_S = 30.0, 2.0
"""How long a lease outlives its stream, for the engine's report: of an answer, and of a request that got none, mostly
since its client left. Where engines do not report, it ends with the stream."""
_BY_ENGINE = "via_upstream"
_FAILURES: tuple[tuple[str, Failure], ...] = (
    ("connection_failure", "unreachable"),
    ("response_timeout", "timeout"),
    ("upstream_reset_before_response_started", "broken"),
)
"""What Envoy's details of an answer that no engine gave have in them, and how the request ended at the engine."""


class Picker:
    """Answers streams."""

    def __init__(self, app: RouterApp, parts: Parts, access: Mapping[str, EngineAccess], end: object) -> None:
        """`access`: of engines, by scheme and host; `end`: what a stream reads at its end."""
        self._app, self._parts, self._access, self._end = app, parts, access, end
        self._picks = parts.leases.picks

    async def process(self, stream: Stream) -> None:
        """One request, from its headers to those of its answer, or to the end of a streamed answer."""
        first = await stream.read()
        if first is self._end or messages.phase_of(first) != "request_headers":
            return
        exchange = Exchange(stream, self._end, first, self._parts.config.receive_timeout_s)
        if exchange.no_body:
            log.error("the gateway must send bodies: request_body_mode BUFFERED or FULL_DUPLEX_STREAMED")
            await exchange.skip()
            return
        try:
            await self._serve(exchange)
        except RequestError as error:
            self._parts.metrics.count_error(error)
            self._picks["refused"] += 1
            await exchange.refuse(_SHED if isinstance(error, Overloaded) else error.status, error)
        except Left:
            self._picks["left"] += 1

    async def _serve(self, exchange: Exchange) -> None:
        """Read a request, decide, answer the gateway, and let the engine's answer pass. Raises `RequestError`."""
        config, scope = self._parts.config, exchange.scope
        http_request = HttpRequest.from_scope(scope, exchange.receive, time.perf_counter(), config)
        key = self._app.admit(http_request)
        with self._app.concurrent(key):
            async with self._app.bodies.body(http_request) as body:
                if body is None:
                    raise Left
                made = self._app.client_request(http_request, key, body)
                exchange.request_id = made.request_id
                grant = await self._lease(made, messages.subset_of(exchange.first))
                try:
                    await exchange.answer(self._change(http_request, made, grant, body))
                except BaseException:  # the gateway has gone, or ends the stream: nobody sends the request
                    if grant is not None:
                        self._parts.leases.cancel(grant.lease)
                    raise
                self._picks["gave_up" if grant is None else "picked"] += 1
                await self._follow(exchange, made, grant)

    async def _lease(self, made: ClientRequest, among: frozenset[str] | None) -> Grant | None:
        """Decide within the deadline; None after it. Raises `RequestError`."""
        try:
            async with asyncio.timeout(self._parts.config.epp.deadline_s):
                return await self._parts.leases.open(made, among)
        except TimeoutError:
            if not self._parts.replicas.reachable():
                raise NoEngineAvailable("no engine is ready", code="no_engine") from None
            return None

    def _change(self, http_request: HttpRequest, made: ClientRequest, grant: Grant | None, body: bytes) -> Change:
        """What the engine gets in place of what the client sent."""
        removed = not_for_engine(http_request.headers, with_authorization=not self._app.keys_enabled)
        predicted = made.request.prediction is not None  # the field itself is for no engine
        body, other_body = made.request.client_body if predicted else body, predicted or "content-encoding" in removed
        if grant is None:
            return Change([(CLIENT_REQUEST_ID, made.request_id)], removed, body, other_body)
        addresses = [grant.address, *grant.fallbacks]
        keys = [self._access.get(one.url, _NO_ACCESS).authorization for one in addresses]
        headers = list(grant.address.headers.items())
        if keys[0] is not None:
            headers.append(("authorization", keys[0]))
        given = {name for name, _ in headers}
        # All endpoints get the same headers, so none with another key than the first can be named.
        endpoints = [endpoint_of(one.url) for one, key in zip(addresses, keys, strict=True) if key == keys[0]]
        if (args := grant.fields.get(ENGINE_ARGS)) is not None:
            body, other_body = with_args(made.request, made.request.client_body, args), True
        left_out = [name for name in removed if name not in given]
        return Change(headers, left_out, body, other_body, ",".join(endpoints))

    async def _follow(self, exchange: Exchange, made: ClientRequest, grant: Grant | None) -> None:
        """Let the answer pass, and note who gave it. The stream ends with the answer, or when its client leaves."""
        answered = False
        try:
            async for request in exchange.rest():
                if messages.phase_of(request) == "response_headers":
                    answered = True
                    await exchange.write(messages.change("response_headers", self._shown(made, grant, request)))
                else:
                    await exchange.let_pass(request)
        finally:
            if grant is not None:
                reports = self._parts.leases.inbox is not None
                wait_s = 0.0 if not reports else _REPORT_S if answered else _NO_ANSWER_S
                asyncio.get_running_loop().call_later(wait_s, self._parts.leases.cancel, grant.lease)

    def _shown(self, made: ClientRequest, grant: Grant | None, request: messages.Request) -> Headers:
        """Headers for the client; ends the lease if the first endpoint has not answered."""
        shown = [(REQUEST_ID, made.request_id)]
        if grant is not None and self._by_first(grant, request) and made.show_routing:
            shown += [(ARM, grant.arm), (POLICY, grant.policy)]
        return shown

    def _by_first(self, grant: Grant, request: messages.Request) -> bool:
        """True if the first endpoint answered; else the lease ends: another one did, or the gateway itself."""
        served, details = messages.served_by(request), messages.details_of(request) or _BY_ENGINE
        if details == _BY_ENGINE and served in (None, endpoint_of(grant.address.url)):
            return True
        failure = next((failure for text, failure in _FAILURES if text in details), None)
        if details == _BY_ENGINE:
            self._parts.leases.tell(OutcomeReport(f"{grant.lease}.1"))
        elif failure is not None:
            self._parts.leases.tell(OutcomeReport(grant.lease, error=failure))
        else:
            self._parts.leases.cancel(grant.lease)
        return False
