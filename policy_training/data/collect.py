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
from draftpick.router.request.verdict import judge_status
from draftpick.router.types import Outcome, Status

ProgressCallback = Callable[[int, int, Measurement], None]
"""Called after each request with (done, total, measurement)."""


@dataclass(frozen=True, slots=True)
class Task:
    """One request. `arm` None: the router's policy chooses; `label`: the condition of the measurement."""

    prompt: Prompt
    arm: str | None
    label: str


def pinned_tasks(prompts: Sequence[Prompt], arms: Sequence[str], seed: int) -> list[Task]:
    """Every prompt once under every arm: prompts in order, the arms of each prompt in random order."""
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
    """Measure tasks in order, `concurrency` at a time. Failed requests are recorded with their status.

    No task starts after `budget_s` seconds; unstarted tasks are omitted.
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
    """Return the header with the first admin key in the environment, if any."""
    key = os.environ.get(ADMIN_KEY_VARIABLE, "").split(",")[0].strip()
    return {"authorization": f"Bearer {key}"} if key else {}


async def arms_of(url: str) -> list[str]:
    """Return the arms behind a router, drafters of pools included. Raises `DraftpickError` if it requires a key."""
    async with httpx.AsyncClient(base_url=url, timeout=10, headers=authorization()) as client:
        state = (await client.get("/ready")).json()
    if "engines" not in state:
        raise DraftpickError(f"{url} requires a key with the scope `admin`: set {ADMIN_KEY_VARIABLE}")
    return list(state.get("in_flight", state["engines"]))


def model_of(url: str) -> str:
    """Return the name of the target behind a router."""
    answer = httpx.get(f"{url}/v1/models", timeout=10, headers=authorization())
    return str(answer.raise_for_status().json()["data"][0]["id"])


async def _send(client: httpx.AsyncClient, model: str, task: Task, *, salt: str, in_flight: int) -> Measurement:
    meter = Meter(time.perf_counter())
    meter.sent = time.perf_counter()
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
        pass  # before the first byte: engine_error; after it: broken
    loops = has_degenerate_repetition(answer_text(received)) if outcome.status == "ok" else None
    return Measurement.from_prompt(
        task.prompt, task.label, arm, outcome, degenerate_repetition=loops, in_flight=in_flight
    )


def answer_text(stream: bytes | bytearray) -> str:
    """Return the text of a chat answer streamed as server-sent events."""
    events = (orjson.loads(line[6:]) for line in bytes(stream).splitlines() if line.startswith(b"data: {"))
    choices = (choice for event in events for choice in event.get("choices", ()))
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def has_degenerate_repetition(text: str, words: int = 8) -> bool:
    """True if some `words` consecutive words occur twice."""
    all_words = text.split()
    runs = [tuple(all_words[i : i + words]) for i in range(len(all_words) - words + 1)]
    return len(set(runs)) < len(runs)


def _status(http_status: int, meter: Meter) -> Status:
    status = judge_status(http_status).status
    return "broken" if status == "ok" and not meter.terminated else status


def _body(model: str, task: Task, salt: str) -> dict[str, Any]:
    return {
        "model": model,
        **task.prompt.request_fields,
        "stream": True,
        "stream_options": {"include_usage": True},
        # Prevents the prefix cache of one measurement from speeding up the next.
        "cache_salt": salt,
    }
