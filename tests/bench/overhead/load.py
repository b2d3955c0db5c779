"""A client that costs next to nothing: keep-alive connections, each a raw asyncio protocol, one request at a time."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

import httptools
import orjson

_CONTENT = b'"content":"'
_DONE = b"[DONE]"


@dataclass(slots=True)
class Seen:
    """One answer. Seconds: `e2e_s` to its last byte, `ttft_s` to the first content of a stream; `chunks_s`: how long
    each chunk was on its way from the engine.
    """

    ok: bool = False
    e2e_s: float = 0.0
    ttft_s: float = 0.0
    chunks_s: list[float] = field(default_factory=list)


class Connection(asyncio.Protocol):
    """One connection to a server. Raises `ConnectionError` from `ask` when it breaks."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._done: asyncio.Future[Seen] | None = None
        self._began = 0.0
        self._seen = Seen()
        self._stream = False
        self._body = b""

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect."""
        parts = urlsplit(url)
        _, made = await asyncio.get_running_loop().create_connection(cls, parts.hostname, parts.port)
        return made

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    async def ask(self, request: bytes, stream: bool = False) -> Seen:
        """Send a request, as bytes from `as_bytes`, and wait for all of its answer."""
        self._seen, self._stream, self._body = Seen(), stream, b""
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._began = time.perf_counter()
        self._transport.write(request)
        return await self._done

    def close(self) -> None:
        """Hang up."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError(str(error or "closed")))

    def on_body(self, body: bytes) -> None:
        self._body += body
        if not self._stream:
            return
        now = time.monotonic_ns()
        *events, self._body = self._body.split(b"\n\n")
        for event in events:
            at = event.find(_CONTENT)
            if at >= 0 and (said := event[at + len(_CONTENT) : event.find(b'"', at + len(_CONTENT))]):
                if not self._seen.ttft_s:
                    self._seen.ttft_s = time.perf_counter() - self._began
                if (sent := said.strip()).isdigit():
                    self._seen.chunks_s.append((now - int(sent)) * 1e-9)
            elif _DONE in event:
                self._seen.ok = True

    def on_message_complete(self) -> None:
        seen = self._seen
        seen.e2e_s = time.perf_counter() - self._began
        whole = self._parser.get_status_code() == 200
        seen.ok = whole and (seen.ok if self._stream else b'"choices"' in self._body)
        if self._done is not None and not self._done.done():
            self._done.set_result(seen)


def as_bytes(url: str, body: dict[str, Any]) -> bytes:
    """A chat request for the server at `url`."""
    data, parts = orjson.dumps(body), urlsplit(url)
    path = f"{parts.path.rstrip('/')}/v1/chat/completions"
    head = f"POST {path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
    return f"{head}authorization: Bearer none\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data


async def flood(url: str, body: dict[str, Any], concurrency: int, n: int) -> tuple[list[Seen], float]:
    """(answers, seconds) of `n` requests by `concurrency` clients, each of which asks again at once."""
    connections = await asyncio.gather(*(Connection.open(url) for _ in range(concurrency)))
    request, stream = as_bytes(url, body), bool(body.get("stream"))
    seen: list[Seen] = []
    left = iter(range(n))

    async def client(connection: Connection) -> None:
        for _ in left:
            try:
                seen.append(await connection.ask(request, stream))
            except ConnectionError:
                seen.append(Seen())
                return

    began = time.perf_counter()
    await asyncio.gather(*map(client, connections))
    took_s = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return seen, took_s


async def in_turn(urls: dict[str, str], body: dict[str, Any], n: int, warm: int = 30) -> dict[str, Sequence[Seen]]:
    """`n` answers of every server, one request at a time, the servers in turn."""
    stream = bool(body.get("stream"))
    connections = {name: await Connection.open(url) for name, url in urls.items()}
    requests = {name: as_bytes(url, body) for name, url in urls.items()}
    seen: dict[str, list[Seen]] = {name: [] for name in urls}
    for number in range(-warm, n):
        for name, connection in connections.items():
            answer = await connection.ask(requests[name], stream)
            if number >= 0:
                seen[name].append(answer)
    for connection in connections.values():
        connection.close()
    return dict(seen)
