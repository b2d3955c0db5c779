"""Clients that keep asking, and what became of each of their requests."""

import asyncio
import contextlib
import random
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp
import orjson

CHAT = "/v1/chat/completions"
_PAUSE_S = 0.05
CLASSES = ("default", "edit", "code", "summary", "math")


@dataclass(slots=True)
class ClientResult:
    """One request: when it went, how it ended. Times are of `time.monotonic()`.

    `began`: the first byte of an answer below 400 came. `done`: the answer came whole. `attempts`, `arm`: as its
    headers say. `error`: the code of the error that came instead, or of the event that ended a stream. `slow`: its
    client read slowly.
    """

    request_id: str
    stream: bool
    sent: float
    ended: float = 0.0
    status: int = 0
    began: bool = False
    done: bool = False
    attempts: int = 0
    arm: str = ""
    error: str = ""
    slow: bool = False


@dataclass
class Clients:
    """`num_clients` clients, each with one request at a time, half of them streams, until `stop`.

    `key`: of all of them, if keys are needed; `slow_share`: of the streams that are read slowly.
    """

    url: str
    model: str
    num_clients: int
    max_tokens: int = 40
    seed: int = 0
    key: str = ""
    slow_share: float = 0.0
    results: list[ClientResult] = field(default_factory=list)
    _stop: bool = False

    async def run(self) -> None:
        """Ask until `stop` is called, and finish what was begun."""
        timeout, headers = aiohttp.ClientTimeout(total=60), {"authorization": f"Bearer {self.key}"} if self.key else {}
        async with aiohttp.ClientSession(
            self.url, timeout=timeout, headers=headers, connector=aiohttp.TCPConnector(limit=0)
        ) as session:
            await asyncio.gather(*(self._client(session, i) for i in range(self.num_clients)))

    def stop(self) -> None:
        """No new requests from now on."""
        self._stop = True

    async def _client(self, session: aiohttp.ClientSession, number: int) -> None:
        rng = random.Random(f"{self.seed}|{number}")
        while not self._stop:
            result = ClientResult(uuid.uuid4().hex, rng.random() < 0.5, time.monotonic())
            result.slow = result.stream and rng.random() < self.slow_share
            self.results.append(result)
            try:
                await self._ask(session, result, rng)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                result.error = result.error or type(error).__name__
            result.ended = time.monotonic()
            if not result.done:
                await asyncio.sleep(0.05)  # a refused client that comes back at once would drown the others' figures

    async def _ask(self, session: aiohttp.ClientSession, result: ClientResult, rng: random.Random) -> None:
        text = f"[class:{rng.choice(CLASSES)}] {rng.randrange(10**6)} " + "word " * rng.randrange(1, 60)
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": self.max_tokens,
            "stream": result.stream,
        }
        async with session.post(CHAT, json=body, headers={"x-request-id": result.request_id}) as answer:
            _read_headers(result, answer.status, answer.headers)
            if answer.status >= 400:
                result.error = _code(await answer.read()) or f"http_{answer.status}"
                return
            if not result.stream:
                whole = orjson.loads(await answer.read())
                result.began = result.done = bool(whole["choices"])
                return
            last = b""
            async for chunk in answer.content.iter_any():
                result.began = True
                last = (last + chunk)[-600:]
                if result.slow:
                    await asyncio.sleep(_PAUSE_S)
            result.done = last.rstrip().endswith(b"data: [DONE]") and b'"error"' not in last
            if not result.done:
                result.error = _code(last[last.rfind(b"data: ") + 6 :]) or "cut"


def _read_headers(result: ClientResult, status: int, headers: Mapping[str, str]) -> None:
    result.status = status
    result.attempts = int(headers.get("x-draftpick-attempts", "0"))
    result.arm = headers.get("x-draftpick-arm", "")


def _code(body: bytes) -> str:
    with contextlib.suppress(orjson.JSONDecodeError, AttributeError, TypeError):
        return str(orjson.loads(body)["error"]["code"])
    return ""
