"""The router as an ASGI application that speaks the OpenAI API."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import orjson
from starlette.types import Message, Receive, Scope, Send

from engines.client import Headers
from router.dispatch import Dispatcher, Incoming
from router.errors import BadRequest, RequestError, TooLarge
from router.openai import parse

PIN_HEADER = "x-draftpick-arm"
_LOCAL = ("/health", "/ready", "/v1/models")


class RouterApp:
    """ASGI application: `/health`, `/ready`, `/v1/models` here; every other path goes to an engine."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        model: str,
        max_body_bytes: int,
        ready: Callable[[], dict[str, object]],
        start: Callable[[], Awaitable[None]],
        stop: Callable[[], Awaitable[None]],
    ) -> None:
        self._dispatcher, self._model, self._max_body_bytes = dispatcher, model, max_body_bytes
        self._ready, self._start, self._stop = ready, start, stop
        self._created = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self._start()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        accepted = time.perf_counter()
        reply = _AsgiReply(send)
        try:
            if scope["method"] == "GET" and _path(scope) in _LOCAL:
                await self._local(_path(scope), reply)
                return
            body = await self._body(receive)
            if body is not None:
                work = self._dispatcher.run(_incoming(scope, body, accepted), reply)
                if await _unless_gone(receive, work):
                    await reply.finish()
        except RequestError as error:
            await reply.json(error.status, error.body())

    async def _local(self, path: str, reply: "_AsgiReply") -> None:
        if path == "/v1/models":
            model = {"id": self._model, "object": "model", "created": self._created, "owned_by": "draftpick"}
            await reply.json(200, {"object": "list", "data": [model]})
        elif path == "/ready":
            state = self._ready()
            await reply.json(200 if state["ready"] else 503, state)
        else:
            await reply.json(200, {"status": "ok"})

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None when the client went away before its end."""
        parts: list[bytes] = []
        size = 0
        while True:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_body_bytes:
                raise TooLarge(f"the body is larger than {self._max_body_bytes} bytes", code="body_too_large")
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)


class _AsgiReply:
    """Sends an answer through ASGI."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def start(self, status: int, headers: Headers) -> None:
        raw = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def json(self, status: int, content: dict[str, object]) -> None:
        body = orjson.dumps(content)
        await self.start(status, [("content-type", "application/json"), ("content-length", str(len(body)))])
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


def _incoming(scope: Scope, body: bytes, accepted: float) -> Incoming:
    headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"]]
    named = dict(headers)
    path = _path(scope)
    query = scope.get("query_string", b"").decode("latin-1")
    if not path.startswith("/"):
        raise BadRequest("the path must begin with /", code="bad_path")
    return Incoming(
        request=parse(path, body),
        method=scope["method"],
        target=_raw_path(scope) + (f"?{query}" if query else ""),
        headers=headers,
        request_id=named.get("x-request-id") or uuid.uuid4().hex,
        accepted=accepted,
        pin=named.get(PIN_HEADER),
    )


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if root else path


def _raw_path(scope: Scope) -> str:
    """The path as it was sent, percent signs and all, below the route prefix."""
    raw: str = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1").split("?")[0]
    return raw.removeprefix(scope.get("root_path", ""))


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` to its end (True), or cancel it when the client goes away (False)."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
            return True
        return False
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
