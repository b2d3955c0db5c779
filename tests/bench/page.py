"""What the page at /ui costs, and pictures of it: `python -m tests.bench.page --json FILE [--pictures FOLDER]`.

A router with the policy that ships, a registry with a candidate, and mock engines under some traffic, all on loopback.
Bytes of its files, time to its first data in a browser (if there is one here), requests of a poll, and what a poll
takes the router, while all that it remembers is full.
"""

import argparse
import asyncio
import gzip
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
from PIL import Image

from deploy.results import write
from engines.http import LocalServer
from engines.mock import MockSpec, mock_app
from policy_training.evaluate import Interval
from policy_training.workloads import Prompt, generate
from router.config import load_config
from router.policies import SHIPPED, artifact
from router.recent import KEPT
from router.registry import Registry
from router.router import Router, fixed
from router.ui import FOLDER
from tests import browser
from tests.bench.figures import show, spread

MODEL = "smollm2-135m-instruct"
STATE = "/v1/route/state"
STEP_S = {
    "plain": 0.034,
    "suffix": 0.037,
    "hybrid": 0.038,
    "general": 0.040,
    "math": 0.041,
    "code": 0.040,
    "chat": 0.041,
}
TAU = {
    "suffix": {"edit": 3.4, "summary": 1.6, "code": 1.4, "json": 1.5},
    "hybrid": {"edit": 3.0, "summary": 1.7, "code": 1.6, "json": 1.7},
    "general": {"math": 1.8, "code": 1.7, "chat": 1.7, "summary": 1.6, "json": 1.7, "edit": 1.6},
    "math": {"math": 2.4}, "code": {"code": 2.2}, "chat": {"chat": 1.9},
}  # fmt: skip
GATE = [
    ("worst_slice", True, "none is slower than the default arm; 6 of 6 slices judged"),
    ("replay_gain", True, "gains 6.1% of the time (2.8% to 9.4%)"),
    ("rewording", True, "keeps 97% of the gain where the words are others"),
]
BUDGET_MS = 2.0
_POLLS, _LOADS = 300, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder of page-light.png and page-dark.png; needs a browser")
    parser.add_argument("--seconds", type=float, default=40.0, help="of traffic before anything is measured")
    args = parser.parse_args()
    figures = asyncio.run(measured(args.seconds, args.pictures))
    show(figures)
    if args.json:
        write(args.json, _POLLS, figures)
    if figures["poll_ms"].value > BUDGET_MS:
        raise SystemExit(f"a poll takes the router more than {BUDGET_MS:g} ms")


async def measured(seconds: float, pictures: Path | None) -> dict[str, Interval]:
    """All figures."""
    files = [path.read_bytes() for path in FOLDER.iterdir()]
    figures = {
        "files": _exactly(len(files)),
        "bytes": _exactly(sum(map(len, files))),
        "compressed_bytes": _exactly(sum(len(gzip.compress(body, 9)) for body in files)),
    }
    with tempfile.TemporaryDirectory() as folder:
        async with world(Path(folder)) as (router, url):
            await traffic(url, seconds)
            if browser.executable():
                figures |= await _seen(url, pictures)
            fill(router)
            figures |= await _polled(router, url)
    return figures


# --- a router with something to show ---


@asynccontextmanager
async def world(folder: Path, **more: Any) -> AsyncIterator[tuple[Router, str]]:
    """A router over seven mock engines, with the policy that ships in a registry; and its address."""
    engines = {arm: LocalServer(mock_app(_engine(arm), model=MODEL, engine=arm)) for arm in STEP_S}
    for server in engines.values():
        await server.start()
    settings = {
        "policy": str(registry(folder / "policies").path),
        "default_engine": "plain",
        "explore": 0.05,
        "seed": 0,
    }
    listed = [{"name": arm, "url": server.url} for arm, server in engines.items()]
    made = {"target": {"name": MODEL}, "engines": listed, "router": {**settings, **more}}
    router = Router(load_config(made), {arm: fixed(server.url) for arm, server in engines.items()})
    await router.start()
    server = LocalServer(router.app)
    await server.start()
    try:
        yield router, server.url
    finally:
        await asyncio.gather(server.drain(0.1), *(one.drain(0.1) for one in engines.values()))
        await router.stop()


def registry(path: Path) -> Registry:
    """One with an active policy, one before it, and a candidate that passed its gate."""
    made, (manifest, arrays) = Registry(path), artifact.read(SHIPPED)
    for i, reason in enumerate(("the policy that ships", "800 new records", "1,200 new records")):
        changed = {**arrays, "start_s": arrays["start_s"] * np.float32(1 + 0.01 * i)}
        folder = path.with_name(f"made-{i}")
        artifact.write(folder, manifest, changed)
        checks = [{"name": name, "passed": passed, "why": why} for name, passed, why in GATE]
        id = made.add(folder, {"reason": reason, "gate": {"passed": True, "checks": checks}}, "retrain")
        if i < 2:
            made.promote(id, "retrain", "all gates passed")
    made.advance("p0003", 0.1, "keeper", "no harm in 400 requests", begin=True)
    return made


def _engine(arm: str) -> MockSpec:
    by_class = TAU.get(arm, {})
    usual = 1.15 if by_class else 1.0
    fields = {
        "acceptance_length": usual,
        "acceptance_by_class": by_class,
        "num_speculative_tokens": 8 if by_class else 0,
    }
    return MockSpec.model_validate(
        {
            "step_s": STEP_S[arm],
            "step_s_per_request": 0.002,
            "jitter": 0.05,
            "prefill_s": 0.03,
            "output_tokens": 60,
            **fields,
        }
    )


async def traffic(url: str, seconds: float, rate: float = 8.0) -> None:
    """Requests of six kinds, so many a second."""
    prompts, waiting = (
        itertools.cycle(generate(240, seed=3, sampled_share=0.4, max_tokens=64)),
        set[asyncio.Task[None]](),
    )
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            waiting.add(asyncio.create_task(_ask(client, next(prompts))))
            await asyncio.sleep(1 / rate)
        await asyncio.gather(*waiting)


async def _ask(client: httpx.AsyncClient, prompt: Prompt) -> None:
    body = {
        "model": MODEL, "messages": [{"role": "user", "content": prompt.text}], "temperature": prompt.temperature,
        "max_tokens": prompt.max_tokens, "mock_class": prompt.kind,
    }  # fmt: skip
    (await client.post("/v1/chat/completions", json=body)).raise_for_status()


def fill(router: Router) -> None:
    """Let a router remember as many attempts as it can, by counting those it has again."""
    recent = router.dispatcher.recent
    for seen in itertools.islice(itertools.cycle(list(recent.ended)), KEPT):
        recent.ended.append(seen)
        recent.unseen += 1


# --- figures ---


async def _polled(router: Router, url: str) -> dict[str, Interval]:
    """What a poll takes the router, and what it weighs."""
    taken = [await _milliseconds(router) for _ in range(_POLLS)]
    async with httpx.AsyncClient(base_url=url, headers={"accept-encoding": "identity"}) as client:
        answer = await client.get(STATE)
        answer.raise_for_status()
        round_trips = [await _timed(client.get(STATE)) for _ in range(_POLLS)]
    return {
        "poll_ms": Interval(*(float(q) for q in np.quantile(taken[20:], [0.5, 0.05, 0.95]))),
        "poll_round_trip_ms": Interval(*(float(q) for q in np.quantile(round_trips, [0.5, 0.05, 0.95]))),
        "poll_bytes": _exactly(len(answer.content)),
    }


async def _milliseconds(router: Router) -> float:
    """Of the router's own work on one poll, without a socket."""
    sent: list[dict[str, Any]] = []
    scope = {"type": "http", "method": "GET", "path": STATE, "headers": [], "query_string": b""}

    async def receive() -> Any:
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    passed = time.perf_counter()
    await router.app(scope, receive, send)
    passed = time.perf_counter() - passed
    assert orjson.loads(sent[1]["body"])["ready"]
    return 1000 * passed


async def _timed(work: Awaitable[object]) -> float:
    passed = time.perf_counter()
    await work
    return 1000 * (time.perf_counter() - passed)


async def _seen(url: str, pictures: Path | None) -> dict[str, Interval]:
    """What a browser sees: how soon, and with how many requests."""
    async with browser.tab() as page:
        await page.look(1440, 1250)
        first, shifts = [], []
        for _ in range(_LOADS):
            began = time.perf_counter()
            await page.command("Page.navigate", url=f"{url}/ui/")
            await page.until("document.querySelector('.engines tbody tr')")
            first.append(1000 * (time.perf_counter() - began))
            await page.run(_WATCH_SHIFTS)
            await asyncio.sleep(5)
            shifts.append(await page.run("window.shifted"))
        requests = await page.run(
            "performance.getEntriesByType('resource').filter(e => e.name.includes('/v1/')).length"
        )
        polls = await page.run("performance.getEntriesByType('resource').filter(e => e.name.endsWith('/state')).length")
        if page.told:
            raise SystemExit("\n".join(page.told))
        if pictures is not None:
            await draw(page, url, pictures)
    return {
        "first_data_ms": spread(first),
        "requests_per_poll": _exactly(requests / polls),
        "layout_shift": spread(shifts),
    }


_WATCH_SHIFTS = """
window.shifted = 0;
new PerformanceObserver((list) => list.getEntries().forEach((e) => { window.shifted += e.value; }))
  .observe({ type: "layout-shift", buffered: true });
"""


async def draw(page: browser.Tab, url: str, folder: Path) -> None:
    """Pictures of the page in light and dark, with a prompt explained."""
    for scheme in ("light", "dark"):
        await page.look(1440, 1250, scheme)
        await page.open(f"{url}/ui/")
        await page.until("document.querySelector('.engines tbody tr')")
        await page.run("document.getElementById('prompt').value = 'A shop sells 12 pens for 7 euros. What do 30 cost?'")
        await page.click("#explain")
        await page.until("document.querySelector('.explained')")
        path = folder / f"page-{scheme}.png"
        await page.picture(path)
        await asyncio.to_thread(_shrink, path)


def _shrink(path: Path) -> None:
    """Let a picture have 200 colours: a third of its bytes, and nothing to be seen."""
    Image.open(path).convert("RGB").quantize(200).save(path, optimize=True)


def _exactly(value: float) -> Interval:
    return Interval(value, value, value)


if __name__ == "__main__":
    main()
