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


class EndpointTable:
    """Starlette middleware that answers GET of the paths in `pages`, with 404 for a report that is not available.

    All other requests pass through unchanged.
    """

    def __init__(self, app: ASGIApp, pages: Mapping[str, Endpoint]) -> None:
        self._app, self._endpoints = app, pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        page = self._endpoints.get(scope["path"]) if scope["type"] == "http" else None
        if page is None or scope["method"] not in _METHODS:
            await self._app(scope, receive, send)
            return
        shown = page(scope["app"].state)
        body = b"{}" if shown is None else orjson.dumps(shown.as_json())
        headers = [_JSON, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 404 if shown is None else 200, "headers": headers})
        await send({"type": "http.response.body", "body": body if scope["method"] == "GET" else b""})
