"""A hostile client with a key of its own: it does what a client can do to make others pay, for a while, then rests.

While it rests, the others' routing shows what it does to them: `on` says when it was at it.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson

from tests.load.clients import CHAT

_TURN_S = 5.0
_CONCURRENCY = 4
_BURST = 24
_LARGE = 2**20


@dataclass
class Hostile:
    """One hostile client, until `stop`. `counts`: requests by kind; `on`: (begin, end) of its turns, by
    `time.monotonic()`."""

    url: str
    model: str
    key: str
    seed: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    on: list[tuple[float, float]] = field(default_factory=list)
    _stop: bool = False

    async def run(self) -> None:
        """Take turns of `_TURN_S` seconds, and rest as long after each."""
        rng = random.Random(self.seed)
        while not self._stop:
            began = time.monotonic()
            await asyncio.gather(*(self._turn(random.Random(rng.random()), began) for _ in range(_CONCURRENCY)))
            self.on.append((began, time.monotonic()))
            await asyncio.sleep(_TURN_S)

    def stop(self) -> None:
        """No new turn from now on."""
        self._stop = True

    async def _turn(self, rng: random.Random, began: float) -> None:
        kinds = list(_KINDS.items())
        while not self._stop and time.monotonic() - began < _TURN_S:
            name, attack = rng.choice(kinds)
            self.counts[name] += 1
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(_TURN_S):
                    await attack(self, rng)

    def body(self, text: str = "hello", **fields: Any) -> bytes:
        """A body for the chat API."""
        return orjson.dumps({"model": self.model, "messages": [{"role": "user", "content": text}], **fields})

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the router that keeps little unread."""
        parts = urlsplit(self.url)
        return await asyncio.open_connection(parts.hostname, parts.port, limit=4096)

    def head(self, length: int, target: str = CHAT, **headers: str) -> bytes:
        """The head of a request."""
        lines = {"host": "x", "authorization": f"Bearer {self.key}", "content-length": str(length), **headers}
        return "\r\n".join([f"POST {target} HTTP/1.1", *(f"{k}: {v}" for k, v in lines.items()), "", ""]).encode()

    async def send(self, body: bytes, target: str = CHAT, reads: int = 2**20, **headers: str) -> None:
        """Send a request, read so many bytes of its answer at most, and leave."""
        reader, writer = await self.connect()
        try:
            writer.write(
                self.head(len(body), target, **{name.replace("_", "-"): v for name, v in headers.items()}) + body
            )
            while reads > 0 and (part := await reader.read(4096)) and b"[DONE]" not in part:
                reads -= len(part)
        finally:
            writer.close()


async def _many_answers(client: Hostile, rng: random.Random) -> None:
    await client.send(client.body(n=8, stream=True, max_tokens=40))


async def _one_id(client: Hostile, rng: random.Random) -> None:
    await client.send(client.body(f"{rng.random()}", stream=True, max_tokens=20), x_request_id="session")


async def _leave(client: Hostile, rng: random.Random) -> None:
    await client.send(client.body(stream=True, max_tokens=2000), reads=1)


async def _odd_stream(client: Hostile, rng: random.Random) -> None:
    await client.send(client.body(stream=rng.choice(["true", 1, "yes"]), max_tokens=20))


async def _odd_fields(client: Hostile, rng: random.Random) -> None:
    odd = [{"min_p": 0.1}, {"logit_bias": {"1": 5}}, {"n": -1}, {"temperature": "hot"}, {"messages": 3}, {"stop": [""]}]
    await client.send(client.body(**rng.choice(odd)))


async def _no_json(client: Hostile, rng: random.Random) -> None:
    bodies = [b"{", b"[" * 5000, b'{"messages": NaN}', b"\xff\xfe{}", b"null", client.body()[:-1]]
    await client.send(rng.choice(bodies))


async def _impatient(client: Hostile, rng: random.Random) -> None:
    await client.send(client.body(), x_draftpick_timeout=f"{rng.choice([0.0001, 0.01])}")


async def _large(client: Hostile, rng: random.Random) -> None:
    await client.send(client.body("word " * (_LARGE // 5), max_tokens=1))


async def _long_head(client: Hostile, rng: random.Random) -> None:
    if rng.random() < 0.5:
        await client.send(client.body(), x_long="y" * 50_000)
    else:
        await client.send(client.body(), target=f"{CHAT}?{'y' * 50_000}")


async def _silent(client: Hostile, rng: random.Random) -> None:
    _, writer = await client.connect()
    await asyncio.sleep(3)
    writer.close()


async def _slow_upload(client: Hostile, rng: random.Random) -> None:
    body = client.body(stream=True, max_tokens=10)
    reader, writer = await client.connect()
    writer.write(client.head(len(body)) + body[:20])
    await asyncio.sleep(2)
    writer.write(body[20:])
    await reader.read(4096)
    writer.close()


async def _slow_reader(client: Hostile, rng: random.Random) -> None:
    body = client.body(stream=True, max_tokens=2000)
    reader, writer = await client.connect()
    writer.write(client.head(len(body)) + body)
    for _ in range(20):
        await reader.read(512)
        await asyncio.sleep(0.2)
    writer.close()


async def _burst(client: Hostile, rng: random.Random) -> None:
    bodies = [client.body(stream=True, max_tokens=500) for _ in range(_BURST)]
    await asyncio.gather(*(client.send(body, reads=20_000) for body in bodies), return_exceptions=True)


async def _unaccepted(client: Hostile, rng: random.Random) -> None:
    text = " ".join(f"{rng.getrandbits(64):x}" for _ in range(40))
    await client.send(client.body(text, stream=True, max_tokens=40))


_KINDS: dict[str, Callable[[Hostile, random.Random], Awaitable[None]]] = {
    "many_answers": _many_answers,
    "one_id": _one_id,
    "leaves": _leave,
    "odd_stream": _odd_stream,
    "odd_fields": _odd_fields,
    "no_json": _no_json,
    "impatient": _impatient,
    "large_body": _large,
    "long_head": _long_head,
    "silent": _silent,
    "slow_upload": _slow_upload,
    "slow_reader": _slow_reader,
    "burst": _burst,
    "unaccepted_drafts": _unaccepted,
}
