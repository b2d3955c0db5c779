"""Endpoints for operators: explanations, state, events, policies."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Literal, Protocol

from pydantic import Field, ValidationError

from draftpick.engines.config import Model
from draftpick.router.errors import BadRequest, NotAllowed, PolicyRejected, RegistryFailed
from draftpick.router.http.access import Access
from draftpick.router.http.asgi import AsgiSink, BodyBudget, HttpRequest
from draftpick.router.http.auth import ANONYMOUS
from draftpick.router.monitoring.explain import explain
from draftpick.router.monitoring.status import FleetStatus
from draftpick.router.online.events import EventLog
from draftpick.router.openai_request import parse
from draftpick.router.parts import Parts
from draftpick.router.registry.registry import Registry, RegistryState

CHAT = "/v1/chat/completions"
_LONGEST_NAME = 100


class Owner(Protocol):
    """The router behind the application."""

    @property
    def registry(self) -> Registry | None:
        """The registry of its policies, if any."""

    @property
    def events(self) -> EventLog:
        """Recent events."""

    async def start(self) -> None:
        """Start to follow the engines' replicas."""

    async def stop(self) -> None:
        """Close connections and flush queued records."""

    def state(self) -> dict[str, object]:
        """The content of `/ready`."""

    async def metrics(self) -> str:
        """The Prometheus page of the whole fleet."""


class PolicyChange(Model):
    """Body of `POST /v1/route/policies`."""

    action: Literal["canary", "promote", "pin", "unpin", "rollback"]
    id: str = Field(
        "",
        max_length=20,
        pattern=r"^(p[0-9]{4,})?$",
        description="id of a policy in the registry; not for `unpin` and `rollback`",
    )
    share: float = Field(0.01, gt=0, le=1, description="share of the requests, for `canary`")
    reason: str = Field("", max_length=500)

    @property
    def takes_id(self) -> bool:
        """True if the action needs `id`."""
        return self.action not in ("unpin", "rollback")

    def apply(self, registry: Registry, by: str) -> None:
        """Change the registry. Raises `PolicyRejected`, and OSError if the disk fails."""
        if self.action == "canary":
            registry.set_canary_share(self.id, self.share, by, self.reason, start=True)
        elif self.takes_id:
            getattr(registry, self.action)(self.id, by, self.reason)
        else:
            getattr(registry, self.action)(by, self.reason)


class AdminPages:
    """Endpoints for keys with the scope `admin`. Changes require configured keys, or any client could make them."""

    def __init__(self, parts: Parts, owner: Owner, access: Access, bodies: BodyBudget, model: str) -> None:
        self._parts, self._owner, self._access, self._bodies = parts, owner, access, bodies
        self._fleet_status = FleetStatus(parts, model, owner.registry)

    @property
    def pages(self) -> dict[tuple[str, str], Callable[[HttpRequest, AsgiSink], Awaitable[None]]]:
        """Endpoints by method and path."""
        return {
            ("POST", "/v1/route/explain"): self._explain,
            ("GET", "/v1/route/state"): self._state,
            ("GET", "/v1/route/events"): self._events,
            ("GET", "/v1/route/policies"): self._policies,
            ("POST", "/v1/route/policies"): self._change_policies,
        }

    async def _explain(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        key = self._access.require_admin(http_request, "to explain")
        async with self._bodies.body(http_request) as body:
            if body is not None:
                request = parse(CHAT, body, self._parts.config)
                name = self._access.keys.name_of(key)
                await reply.json(200, await explain(self._parts, request, key.objective, key.explore, name))

    async def _state(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        self._access.require_admin(http_request, "the state")
        shown = {"keys": self._access.keys.enabled, **await self._fleet_status.state()}
        await reply.json(200, shown, [("cache-control", "no-store")])

    async def _events(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        self._access.require_admin(http_request, "the events")
        await reply.json(
            200, {"object": "list", "data": [asdict(event) for event in reversed(self._owner.events.recent)]}
        )

    async def _policies(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        self._access.require_admin(http_request, "the policies")
        await self._show_policies(reply)

    async def _show_policies(self, reply: AsgiSink) -> None:
        await reply.json(200, (await self._read()).model_dump(mode="json", by_alias=True))

    async def _read(self) -> RegistryState:
        try:
            return await asyncio.to_thread(self._registry().state)
        except PolicyRejected as error:
            raise RegistryFailed(str(error), code="registry_damaged") from error

    async def _change_policies(self, http_request: HttpRequest, reply: AsgiSink) -> None:
        key = self._access.require_admin(http_request, "to change the policies")
        if key is ANONYMOUS:
            raise NotAllowed("this needs router.keys: without them any local process could do it", code="keys_needed")
        async with self._bodies.body(http_request) as body:
            if body is None:
                return
        try:
            change = PolicyChange.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            raise BadRequest(first["msg"], param=".".join(map(str, first["loc"]))[:_LONGEST_NAME] or None) from None
        await self._read()  # a damaged registry is not the client's error
        try:
            await asyncio.to_thread(change.apply, self._registry(), f"key {key.name}")
        except PolicyRejected as error:
            param = "id" if change.takes_id else None
            raise BadRequest(str(error), param=param, code="policy_rejected") from error
        except OSError as error:
            raise RegistryFailed(f"the registry is not writable: {error.strerror}", code="registry_failed") from error
        await self._show_policies(reply)

    def _registry(self) -> Registry:
        if self._owner.registry is None:
            fix = "draftpick policies activate FOLDER --registry REGISTRY"
            raise BadRequest(f"router.policy names no registry ({fix})", code="no_registry")
        return self._owner.registry
