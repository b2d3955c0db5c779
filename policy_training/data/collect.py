"""Sends prompts to every engine of a running fleet, in randomised order, and measures each answer."""

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from draftpick.engines.errors import DraftpickError
from draftpick.policy_training.data.dataset import Measurement
from draftpick.policy_training.workloads import Prompt
from draftpick.router import headers
from draftpick.router.config.sections import ADMIN_KEY_VARIABLE
from draftpick.router.request.meter import EventStream, Meter
from draftpick.router.types import Outcome, Status

ProgressCallback = Callable[[int, int, Measurement], None]
"""Called after each request with (done, total, what was measured)."""


@dataclass(frozen=True, slots=True)
class Task:
    """One request to send. `arm` None: the router's policy chooses; `label` is what the measurement is filed under."""

    prompt: Prompt
    arm: str | None
    label: str


def pinned_tasks(prompts: Sequence[Prompt], arms: Sequence[str], seed: int) -> list[Task]:
    """Every prompt once under every arm. Prompts come in order, the arms of each prompt in random order."""
    rng = random.Random(seed)
    return [Task(prompt, arm, arm) for prompt in prompts for arm in rng.sample(list(arms), len(arms))]


async def measure(
    url: str,
    model: str,
    tasks: Sequence[Task],
    *,
    concurrency: int = 1,
    progress: ProgressCallback | None = None,
    budget_s: float = float("inf"),
) -> list[Measurement]:
    """Measure tasks in order, `concurrency` at a time. Failed requests are measurements too, with their status.

    No task is begun after `budget_s` seconds; tasks that were not begun are left out.
    """
    deadline = time.monotonic() + budget_s
    limit = asyncio.Semaphore(concurrency)
    done: dict[int, Measurement] = {}
    timeout = httpx.Timeout(600, connect=10)
    async with httpx.AsyncClient(base_url=url, timeout=timeout, headers=authorization()) as client:

        async def one(number: int, task: Task) -> None:
            async with limit:
                if time.monotonic() > deadline:
                    return
                result = await _send(client, model, task, salt=f"{time.time_ns()}-{number}", in_flight=concurrency)
            done[number] = result
            if progress is not None:
                progress(len(done), len(tasks), result)

        await asyncio.gather(*(one(i, task) for i, task in enumerate(tasks)))
    return [done[number] for number in sorted(done)]


def authorization() -> dict[str, str]:
    """The header of the first admin key in the environment, if there is one."""
    key = os.environ.get(ADMIN_KEY_VARIABLE, "").split(",")[0].strip()
    return {"authorization": f"Bearer {key}"} if key else {}


async def arms_of(url: str) -> list[str]:
    """Names of the engines behind a router."""
    async with httpx.AsyncClient(base_url=url, timeout=10, headers=authorization()) as client:
        state = (await client.get("/ready")).json()
    if "engines" not in state:
        raise DraftpickError(f"{url} asks for a key with the scope `admin`: put one into {ADMIN_KEY_VARIABLE}")
    return list(state["engines"])


def model_of(url: str) -> str:
    """Name of the target behind a router."""
    answer = httpx.get(f"{url}/v1/models", timeout=10, headers=authorization())
    return str(answer.raise_for_status().json()["data"][0]["id"])


async def _send(client: httpx.AsyncClient, model: str, task: Task, *, salt: str, in_flight: int) -> Measurement:
    meter = Meter(time.perf_counter())
    meter.mark_sent()
    pin = {headers.ARM: task.arm} if task.arm else {}
    arm, outcome, received = task.arm or "", Outcome("engine_error"), bytearray()
    try:
        body = _body(model, task, salt)
        async with client.stream("POST", "/v1/chat/completions", json=body, headers=pin) as answer:
            arm = answer.headers.get(headers.ARM, arm)
            events = EventStream(meter, hide_usage=False)
            outcome = Outcome("broken", answer.status_code)
            async for chunk in answer.aiter_bytes():
                events.feed(chunk)
                received += chunk
        meter.http_status = answer.status_code
        outcome = meter.outcome(_status(answer.status_code, meter))
    except httpx.TimeoutException:
        outcome = Outcome("timeout")
    except httpx.HTTPError:
        pass  # refused: engine_error; cut after its first byte: broken
    loops = has_degenerate_repetition(answer_text(received)) if outcome.status == "ok" else None
    return Measurement.from_prompt(
        task.prompt, task.label, arm, outcome, degenerate_repetition=loops, in_flight=in_flight
    )


def answer_text(stream: bytes | bytearray) -> str:
    """The text of a chat answer that came as server-sent events."""
    events = (orjson.loads(line[6:]) for line in bytes(stream).splitlines() if line.startswith(b"data: {"))
    choices = (choice for event in events for choice in event.get("choices", ()))
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def has_degenerate_repetition(text: str, words: int = 8) -> bool:
    """Whether some `words` words in a row come twice."""
    said = text.split()
    runs = [tuple(said[i : i + words]) for i in range(len(said) - words + 1)]
    return len(set(runs)) < len(runs)


def _status(http_status: int, meter: Meter) -> Status:
    if http_status >= 400:
        return "engine_error" if http_status >= 500 else "client_error"
    return "ok" if meter.terminated else "broken"


def _body(model: str, task: Task, salt: str) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": task.prompt.text}],
        "temperature": task.prompt.temperature,
        "top_p": task.prompt.top_p,
        "max_tokens": task.prompt.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        # Keeps one measurement's prefix cache from speeding up the next one.
        "cache_salt": salt,
    }
