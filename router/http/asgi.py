"""ASGI requests and answers."""

from dataclasses import dataclass

import orjson
from starlette.types import Receive, Scope, Send

from draftpick.engines.http.client import Headers
from draftpick.router.config.router_config import RouterConfig
from draftpick.router.errors import BadRequest, PayloadTooLarge

_MAX_HEADERS = 128


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request before its body is read. `headers`: names in lower case; `header_values`: the last value by name."""

    scope: Scope
    receive: Receive
    accepted: float
    path: str
    headers: Headers
    header_values: dict[str, str]

    @classmethod
    def from_scope(cls, scope: Scope, receive: Receive, accepted: float, config: RouterConfig) -> "HttpRequest":
        """Raises `PayloadTooLarge` for a long URL or too many headers, `BadRequest` for an invalid path."""
        raw = scope["headers"]
        if len(scope["path"]) + len(scope.get("query_string", b"")) > config.max_url_bytes:
            raise PayloadTooLarge(f"the URL is longer than {config.max_url_bytes} bytes", code="url_too_long")
        if len(raw) > _MAX_HEADERS or sum(len(k) + len(v) for k, v in raw) > config.max_header_bytes:
            raise PayloadTooLarge(
                f"more than {_MAX_HEADERS} headers or {config.max_header_bytes} bytes of them",
                code="headers_too_large",
            )
        headers = [(k.decode("latin-1").lower(), v.decode("latin-1")) for k, v in raw]
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        if not path.startswith("/"):
            raise BadRequest("the path must begin with /", code="bad_path")
        return cls(scope, receive, accepted, path, headers, dict(headers))

    def target(self) -> str:
        """Path and query as sent (percent-encoded), below the route prefix."""
        raw: str = (self.scope.get("raw_path") or self.scope["path"].encode()).decode("latin-1").split("?")[0]
        query = self.scope.get("query_string", b"").decode("latin-1")
        return raw.removeprefix(self.scope.get("root_path", "")) + (f"?{query}" if query else "")


class AsgiSink:
    """Sends an answer through ASGI."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._finished = False

    async def start(self, status: int, headers: Headers) -> None:
        raw = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def send_complete(self, status: int, headers: Headers, body: bytes) -> None:
        await self.start(status, [*headers, ("content-length", str(len(body)))])
        await self._send_last(body)

    async def finish(self) -> None:
        """End an answer written in parts."""
        if not self._finished:
            await self._send_last(b"")

    async def _send_last(self, body: bytes) -> None:
        self._finished = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def json(self, status: int, content: dict[str, object], headers: Headers | None = None) -> None:
        await self.send_complete(
            status, [("content-type", "application/json"), *(headers or [])], orjson.dumps(content)
        )
