"""ASGI requests and answers."""

from dataclasses import dataclass

import orjson
from starlette.types import Message, Receive, Scope, Send

from draftpick.engines.http.client import Headers
from draftpick.router.config.router_config import RouterConfig
from draftpick.router.errors import BadRequest, PayloadTooLarge

_MAX_HEADERS = 128
_DOTS = frozenset({".", ".."})


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
        if "/." in path and not _DOTS.isdisjoint(path.split("/")):  # an engine would leave the path that was checked
            raise BadRequest("the path must not have . or .. in it", code="bad_path")
        return cls(scope, receive, accepted, path, headers, dict(headers))

    def target(self) -> str:
        """Path and query as sent (percent-encoded), below the route prefix."""
        raw: str = (self.scope.get("raw_path") or self.scope["path"].encode()).decode("latin-1").split("?")[0]
        query = self.scope.get("query_string", b"").decode("latin-1")
        return raw.removeprefix(self.scope.get("root_path", "")) + (f"?{query}" if query else "")


class AsgiSink:
    """Sends an answer through ASGI.

    `streams`: false for a client of HTTP/1.0, which knows no chunks: it gets an answer in parts at once, at its end.
    `started`: status and headers were sent, or are due. `request_id`: for error answers.
    """

    def __init__(self, send: Send, *, streams: bool = True) -> None:
        self._send, self._streams = send, streams
        self._finished = False
        self._start: Message | None = None
        self._parts: list[bytes] = []
        self.started, self.request_id = False, ""

    async def start(self, status: int, headers: Headers) -> None:
        raw = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers]
        self.started = True
        message = {"type": "http.response.start", "status": status, "headers": raw}
        if self._streams:
            await self._send(message)
        else:
            self._start = message

    async def write(self, data: bytes) -> None:
        if self._streams:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
        else:
            self._parts.append(data)

    async def send_complete(self, status: int, headers: Headers, body: bytes) -> None:
        await self.start(status, [*headers, ("content-length", str(len(body)))])
        await self._send_last(body)

    async def finish(self) -> None:
        """End an answer written in parts."""
        if not self._finished:
            await self._send_last(b"")

    async def _send_last(self, body: bytes) -> None:
        self._finished = True
        if self._start is not None:
            body = b"".join([*self._parts, body])
            length = [(b"content-length", b"%d" % len(body))]
            known = any(name == b"content-length" for name, _ in self._start["headers"])
            await self._send({**self._start, "headers": [*self._start["headers"], *([] if known else length)]})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def json(self, status: int, content: dict[str, object], headers: Headers | None = None) -> None:
        await self.send_complete(
            status, [("content-type", "application/json"), *(headers or [])], orjson.dumps(content)
        )
