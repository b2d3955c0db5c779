"""Cost of the page at /ui, and its errors: `python -m tests.bench.page --json-file FILE [--pictures FOLDER]`.

A router with the policy that ships, a registry with a candidate, and mock engines under some traffic, all on loopback.
Bytes of its files; seconds from an address to the running fleet on the screen, in a browser that was just started and
has nothing in its cache (`load_s`); requests of a poll, and what a poll takes the router, while all that it remembers
is full; what axe-core finds wrong in both themes, wide and narrow, with every section filled (`axe_faults`, of which
`axe_serious`); how many requests the browser sent, and how many of them to anybody but the router
(`outside_requests`); seconds until the page shows, without being loaded again, that another policy serves, that an
engine was killed, and that it is back (`follows_*_s`; `serve_follows_*_s`: of the same fleet on Ray Serve, which starts
the engine again by itself). Without Chromium only what needs none is measured.
"""

import argparse
import asyncio
import gzip
import itertools
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import orjson
from PIL import Image

from draftpick.deploy.launch.ports import free_port
from draftpick.deploy.launch.ray_serve import running
from draftpick.deploy.workflows.results import write
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.router.config.router_config import load_config
from draftpick.router.http.ui import FOLDER
from draftpick.router.registry.registry import Registry
from draftpick.router.router import Router
from tests import browser
from tests.bench.figures import show, spread
from tests.bench.page_world import KILLED, MODEL, STEP_S, engine, fill, registry, traffic, world
from tests.load.faults import kill

Change = Callable[[], Awaitable[object]]
STATE = "/v1/route/state"
BUDGET_MS, LOADS_S = 2.0, 1.0
WIDE, NARROW = (1440, 1250), (390, 1640)
_POLLS, _LOADS = 300, 5
_ROWS = "document.querySelector('.engines tbody tr')"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json-file", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder of page-{light,dark,narrow}.png; needs a browser")
    parser.add_argument("--seconds", type=float, default=40.0, help="of traffic before anything is measured")
    args = parser.parse_args()
    figures = asyncio.run(measured(args.seconds, args.pictures))
    if browser.executable():
        figures |= followed_on_serve()
    show(figures)
    if args.json_file:
        write(args.json_file, _POLLS, figures)
    if figures["poll_ms"].value > BUDGET_MS:
        raise SystemExit(f"a poll takes the router more than {BUDGET_MS:g} ms")
    if "load_s" in figures and figures["load_s"].value > LOADS_S:
        raise SystemExit(f"the page takes more than {LOADS_S:g} s to show anything")


async def measured(seconds: float, pictures: Path | None) -> dict[str, Interval]:
    """All figures."""
    files = [path.read_bytes() for path in FOLDER.iterdir()]
    figures = {
        "files": _exactly(len(files)),
        "bytes": _exactly(sum(map(len, files))),
        "compressed_bytes": _exactly(sum(len(gzip.compress(body, 9)) for body in files)),
    }
    with tempfile.TemporaryDirectory() as folder:
        async with world(Path(folder)) as (router, url, killed):
            await traffic(url, seconds)
            if browser.executable():
                figures |= {"load_s": spread([await _loaded(url) for _ in range(_LOADS)])}
                figures |= await _seen(url, pictures)
            fill(router)
            figures |= await _polled(router, url)
            if browser.executable():
                assert router.registry is not None
                figures |= await _followed(url, router.registry, killed.kill, killed.start, "follows")
    return figures


def followed_on_serve() -> dict[str, Interval]:
    """The same of a fleet on Ray Serve."""

    async def killed() -> None:
        kill(f"engine-{KILLED}")

    async def nothing() -> None:
        """Ray Serve does it."""

    with tempfile.TemporaryDirectory() as folder:
        policies = registry(Path(folder) / "policies")
        engines = [{"name": arm, "kind": "mock", "mock": engine(arm).model_dump(mode="json")} for arm in STEP_S]
        settings = {"policy": str(policies.path), "default_engine": "plain"}
        config = load_config({"target": {"name": MODEL}, "engines": engines, "router": settings})
        with running(config, port=free_port()) as url:
            return asyncio.run(_followed(url, policies, killed, nothing, "serve_follows"))


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


# --- in a browser ---


async def _loaded(url: str) -> float:
    """Seconds from the address to the fleet on the screen, in a browser that was just started."""
    async with browser.tab() as page:
        await page.look(*WIDE)
        began = time.perf_counter()
        await page.command("Page.navigate", url=f"{url}/ui/")
        await page.until(_ROWS)
        return time.perf_counter() - began


async def _seen(url: str, pictures: Path | None) -> dict[str, Interval]:
    """What a browser sees: how soon when it knows the page, with how many requests, and what is wrong."""
    async with browser.tab() as page:
        await page.look(*WIDE)
        first, shifts = [], []
        for _ in range(_LOADS):
            began = time.perf_counter()
            await page.command("Page.navigate", url=f"{url}/ui/")
            await page.until(_ROWS)
            first.append(1000 * (time.perf_counter() - began))
            await page.run(_WATCH_SHIFTS)
            await asyncio.sleep(5)
            shifts.append(await page.run("window.shifted"))
        requests = await page.run(
            "performance.getEntriesByType('resource').filter(e => e.name.includes('/v1/')).length"
        )
        polls = await page.run("performance.getEntriesByType('resource').filter(e => e.name.endsWith('/state')).length")
        asking = asyncio.create_task(traffic(url, 15.0))
        found = await looked_at(page, url, pictures)
        await asking
        if page.told:
            raise SystemExit("\n".join(page.told))
        outside = [one for one in page.asked if urlsplit(one).netloc not in ("", urlsplit(url).netloc)]
    return {
        "first_data_ms": spread(first),
        "requests_per_poll": _exactly(requests / polls),
        "layout_shift": spread(shifts),
        "browser_requests": _exactly(len(page.asked)),
        "outside_requests": _exactly(len(outside)),
        "axe_faults": _exactly(len(found)),
        "axe_serious": _exactly(sum(fault.serious for fault in found)),
    }


_WATCH_SHIFTS = """
window.shifted = 0;
new PerformanceObserver((list) => list.getEntries().forEach((e) => { window.shifted += e.value; }))
  .observe({ type: "layout-shift", buffered: true });
"""


async def looked_at(page: browser.Tab, url: str, pictures: Path | None) -> list[browser.Fault]:
    """What axe-core finds in light and dark, wide and narrow, with a prompt explained; pictures, if they are wanted."""
    found = []
    for (name, size), scheme in itertools.product({"": WIDE, "narrow": NARROW}.items(), ("light", "dark")):
        await page.look(*size, scheme)
        await page.open(f"{url}/ui/")
        await page.until(_ROWS)
        await page.run("document.getElementById('prompt').value = 'A shop sells 12 pens for 7 euros. What do 30 cost?'")
        await page.click("#explain")
        await page.until("document.querySelector('.explained')")
        if pictures is not None and (name, scheme) != ("narrow", "dark"):
            path = pictures / f"page-{name or scheme}.png"
            await page.picture(path)
            await asyncio.to_thread(_shrink, path)
        found += await page.faults()
    return found


async def _followed(url: str, policies: Registry, killed: Change, back: Change, name: str) -> dict[str, Interval]:
    """Seconds until an open page shows what changed behind it. There is some traffic: by it a dead engine is found."""
    row = list(STEP_S).index(KILLED) + 1
    pill = f"document.querySelector('.engines tbody tr:nth-child({row}) .pill').innerText"
    asking = asyncio.create_task(traffic(url, 30.0))
    async with browser.tab() as page:
        await page.open(f"{url}/ui/")
        await page.until(f"{_ROWS} && {pill} === 'ok'")
        took = {}
        for what, change, shown in (
            ("policy", partial(asyncio.to_thread, policies.promote, "p0003", "test"), _ACTIVE),
            ("kill", killed, f"{pill} !== 'ok'"),
            ("return", back, f"{pill} === 'ok'"),
        ):
            await change()
            began = time.perf_counter()
            await page.until(shown, timeout_s=60)
            took[f"{name}_{what}_s"] = _exactly(time.perf_counter() - began)
    await asking
    return took


_ACTIVE = "document.querySelector('#policies-body .head strong').innerText === 'p0003'"


def _shrink(path: Path) -> None:
    """Let a picture have 200 colours: a third of its bytes, and nothing to be seen."""
    Image.open(path).convert("RGB").quantize(200).save(path, optimize=True)


def _exactly(value: float) -> Interval:
    return Interval(value, value, value)


if __name__ == "__main__":
    main()
