"""Status endpoints of an engine, in front of its own ASGI application."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import orjson
from starlette.datastructures import State
from starlette.types import ASGIApp, Receive, Scope, Send

_JSON = (b"content-type", b"application/json")
_METHODS = ("GET", "HEAD")


class JsonReport(Protocol):
    """Content of a status endpoint."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields."""


Endpoint = Callable[[State], JsonReport | None]
"""Builds the current report from the state of a Starlette application; None: not available."""
Action = Callable[[State], bool | None]
"""Starts what a POST asks for; False: not now or not again; None: not available."""


class EndpointTable:
    """Starlette middleware that answers GET of the paths in `pages`, with 404 for a report that is not available, and
    POST of those in `actions`, with 202, or with 409 for False.

    All other requests pass through unchanged.
    """

    def __init__(
        self, app: ASGIApp, pages: Mapping[str, Endpoint], actions: Mapping[str, Action] | None = None
    ) -> None:
        self._app, self._endpoints, self._actions = app, pages, actions or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_http = scope["type"] == "http"
        if is_http and scope["method"] == "POST" and (action := self._actions.get(scope["path"])) is not None:
            began = action(scope["app"].state)
            await _send_json(send, {True: 202, False: 409, None: 404}[began], b"{}", b"{}")
            return
        page = self._endpoints.get(scope["path"]) if is_http else None
        if page is None or scope["method"] not in _METHODS:
            await self._app(scope, receive, send)
            return
        shown = page(scope["app"].state)
        body = b"{}" if shown is None else orjson.dumps(shown.as_json())
        await _send_json(send, 404 if shown is None else 200, body, body if scope["method"] == "GET" else b"")


async def _send_json(send: Send, status: int, body: bytes, sent: bytes) -> None:
    """Send `sent`, with the length of `body`: they differ for HEAD."""
    headers = [_JSON, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": sent})
