"""Concurrent requests to an engine, and the gaps between their chunks: in vLLM a chunk is a step."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import orjson

from draftpick.engines.http.client import EngineClient, EngineResponse
from draftpick.engines.http.server import PROFILING
from draftpick.engines.pool.forecast import XARG, Forecast
from draftpick.engines.profile.profile import ProfileError

SAMPLING: tuple[dict[str, float], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.7, "top_p": 1.0, "top_k": 0},
    {"temperature": 0.7, "top_p": 0.9, "top_k": 50},
)
"""Sampling parameters of each of `draftpick.engines.profile.profile.MODES`."""
_HEADERS = [("content-type", "application/json"), (PROFILING.decode(), "1")]
_CHUNK_END = b"\n\n"
_MAX_TOKENS = 2048
_MIN_STEPS = 3
"""Steps of each request in the full batch, however long they take: only those within all requests' steps count."""
_PATIENCE_S = 180.0


@dataclass(frozen=True, slots=True)
class Target:
    """An engine's address and model. `max_model_len`: maximum tokens of prompt and answer; None: unknown.

    `only`: the drafter of a pool that may draft; None: any.
    """

    client: EngineClient
    url: str
    model: str
    max_model_len: int | None = None
    only: str | None = None

    async def ask(self, path: str, body: dict[str, Any]) -> Any:
        """Return the complete JSON answer to a request. Raises `ProfileError` for an error status."""
        async with self.client.send(self.url + path, "POST", _HEADERS, orjson.dumps(body), stream=False) as answer:
            return orjson.loads(await _read_body(answer))

    def stream(self, prompt: Sequence[int], mode: int, max_tokens: int) -> Any:
        """Start a streamed completion of exactly `max_tokens` tokens."""
        body: dict[str, Any] = {"model": self.model, "prompt": list(prompt), "max_tokens": max_tokens, "stream": True}
        if self.only is not None:
            body["vllm_xargs"] = {XARG: Forecast(only=self.only).to_json()}
        asked = orjson.dumps({**body, "ignore_eos": True, **SAMPLING[mode]})
        return self.client.send(f"{self.url}/v1/completions", "POST", _HEADERS, asked, stream=True)


class _Batch:
    """Arrival of chunks by request: (loop time in seconds, number of chunks that arrived together).

    The batch is full once all requests have their first token.
    """

    def __init__(self, size: int, steps: int, longest_s: float) -> None:
        self._longest_s = longest_s
        self._arrivals: list[list[tuple[float, int]]] = [[] for _ in range(size)]
        self._steps, self._steps_left = steps, [steps] * size
        self.begun, self._full_s = 0, float("inf")

    def observe(self, i: int, at_s: float, chunks: int) -> bool:
        """Record chunks of request i; return True once it has the wanted number of steps in the full batch."""
        came = self._arrivals[i]
        first = not came
        if not first and came[-1][0] >= self._full_s:
            self._steps_left[i] -= chunks
        came.append((at_s, chunks))
        if first:
            self.begun += 1
            if self.begun == len(self._arrivals):
                self._full_s = at_s
        few = self._steps - self._steps_left[i] < _MIN_STEPS
        return self._steps_left[i] <= 0 or (at_s - self._full_s > self._longest_s and not few)

    def finish(self, i: int) -> None:
        """Record the end of request i: its last arrival marks the end, possibly together with a chunk."""
        del self._arrivals[i][-1:]

    def gaps(self) -> list[float]:
        """Seconds of each step of each request while all ran. Chunks that arrived together count as equal steps."""
        if not all(self._arrivals):
            return []
        end_s = min(came[-1][0] for came in self._arrivals)
        return [
            (at_s - before_s) / chunks
            for came in self._arrivals
            for (before_s, _), (at_s, chunks) in pairwise(came)
            if self._full_s <= before_s and at_s <= end_s
            for _ in range(chunks)
        ]


async def sustain_batch(
    target: Target, prompts: Sequence[Sequence[int]], mode: int, *, steps: int, longest_s: float
) -> list[float]:
    """Run one request per prompt concurrently; return the seconds of their steps while all run.

    The requests are cancelled after `steps` steps or `longest_s` seconds. Raises `ProfileError` if they do not run
    concurrently, `EngineError` if the engine fails.
    """
    batch = _Batch(len(prompts), steps, longest_s)
    try:
        async with asyncio.timeout(_PATIENCE_S + longest_s), asyncio.TaskGroup() as group:
            for i, prompt in enumerate(prompts):
                group.create_task(_decode(target, batch, i, prompt, mode))
    except TimeoutError as error:
        raise ProfileError(
            f"{batch.begun} of {len(prompts)} requests started within {_PATIENCE_S:g} s: reduce `batches`"
        ) from error
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return batch.gaps()


async def first_token_s(target: Target, prompt: Sequence[int]) -> float:
    """Return the seconds from sending a request to its first token. Raises as `sustain_batch` does."""
    clock = asyncio.get_running_loop().time
    began_s = clock()
    async with target.stream(prompt, 0, 1) as answer:
        if answer.status != 200:
            await _read_body(answer)
        await anext(answer.chunks)
        took_s = clock() - began_s
        async for _ in answer.chunks:
            pass
    return took_s


async def _decode(target: Target, batch: _Batch, i: int, prompt: Sequence[int], mode: int) -> None:
    room = _MAX_TOKENS if target.max_model_len is None else target.max_model_len - len(prompt)
    clock = asyncio.get_running_loop().time
    async with target.stream(prompt, mode, min(room, _MAX_TOKENS)) as answer:
        if answer.status != 200:
            await _read_body(answer)
        async for part in answer.chunks:
            chunks = part.count(_CHUNK_END)
            if chunks and batch.observe(i, clock(), chunks):
                return
        batch.finish(i)


async def _read_body(answer: EngineResponse) -> bytes:
    body = b"".join([part async for part in answer.chunks])
    if answer.status != 200:
        raise ProfileError(f"the engine answered {answer.status}: {body[:300].decode(errors='replace')}")
    return body
