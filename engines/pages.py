"""The pages on which an engine tells of itself, put in front of its ASGI application: its load, and its profile."""

from collections.abc import Callable

import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from engines import load, profile
from engines.load import LoadReport
from engines.profile import Profile

_JSON = (b"content-type", b"application/json")
_METHODS = ("GET", "HEAD")


class Pages:
    """Answers GET of `/draftpick/load` and `/draftpick/profile`, 404 where there is none; all else goes through."""

    def __init__(
        self,
        app: ASGIApp,
        load_of: Callable[[], LoadReport | None],
        profile_of: Callable[[], Profile | None],
    ) -> None:
        self._app = app
        self._pages: dict[str, Callable[[], LoadReport | Profile | None]] = {
            load.PATH: load_of,
            profile.PATH: profile_of,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        page = self._pages.get(scope["path"]) if scope["type"] == "http" else None
        if page is None or scope["method"] not in _METHODS:
            await self._app(scope, receive, send)
            return
        shown = page()
        body = b"{}" if shown is None else orjson.dumps(shown.as_json())
        headers = [_JSON, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 404 if shown is None else 200, "headers": headers})
        await send({"type": "http.response.body", "body": body if scope["method"] == "GET" else b""})
