"""What a request enters, in counts that no machine changes: our files and functions, calls of these, and calls into C.

`python -m tests.bench.counts` writes counts.json, to which `tests/router/request/test_counts.py` holds the request
path: a change that makes it dearer fails, one that makes it much cheaper asks for a new file. `functions` are those
with a name and lambdas; `frames` count comprehensions and generator expressions as well. Tracing is off. `--list`
prints the names.

A request's path and what observers do with its attempt stand side by side: `whole/` and `stream/` count what runs until
the answer is complete and its attempt is queued, `after/` what `AttemptQueue` runs later for a whole answer,
`with_after/` both. `<path>/functions in <group>`: the functions of a path by the part of the router (`GROUPS`).

The router is in its steady state, its clock and its seed are fixed, and observers see an attempt before the next
request: so each run counts the same.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import orjson

import draftpick
from draftpick.router.config.router_config import load_config
from draftpick.router.router import Router, fixed_address
from tests.bench.overhead.contestants import config
from tests.bench.overhead.engine import Engine
from tests.bench.overhead.measures import LONG, SHORT, body

FILE = Path(__file__).parent / "counts.json"
_PACKAGE = Path(draftpick.__file__).parent
_OURS = tuple(f"{_PACKAGE / package}/" for package in ("engines", "router"))
_WARM, _REQUESTS, _CHUNKS = 400, 40, 50
"""Requests before those that are counted: until exploration is narrow, and levels of arms are known."""
_TICK_S = 1e-3
"""Step of the clock at each look: a request takes as long on any machine, so what is learned from it is the same."""
_COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
_OBSERVE = "AttemptQueue._observe"
_OF_QUEUE = ("AttemptQueue.close", "AttemptQueue.drain")
"""In a router they run once for many attempts."""
GROUPS = {
    "http server": ("router/http/", "router/openai_request"),
    "request": ("router/request/",),
    "features": ("router/features/",),
    "policy": ("router/policies/", "router/registry/"),
    "replicas": ("engines/replicas", "engines/circuit_breaker", "engines/arms"),
    "http client": ("engines/http/",),
    "load": ("router/load/",),
    "learning": ("router/online/", "router/types"),
    "telemetry": ("router/telemetry/", "router/records"),
}
"""Parts of the router, by the beginnings of their files' paths."""


@dataclass
class Entered:
    """What ran: code objects of ours by file and name with their calls, and calls from ours into C."""

    frames: Counter[tuple[str, str]] = field(default_factory=Counter)
    c_calls: int = 0

    def functions(self) -> dict[str, list[str]]:
        """Names of the functions by file, both in alphabetic order."""
        found: dict[str, list[str]] = {}
        for file, name in sorted(self.frames):
            if not name.endswith(_COMPREHENSIONS):
                found.setdefault(str(Path(file).relative_to(_PACKAGE)), []).append(name)
        return found

    def by_group(self) -> dict[str, int]:
        """Number of functions by group. Raises `LookupError` for a file that belongs to none."""
        found = dict.fromkeys(GROUPS, 0)
        for file, names in self.functions().items():
            group = next((one for one, starts in GROUPS.items() if file.startswith(starts)), None)
            if group is None:
                raise LookupError(f"{file} belongs to no group of {__name__}.GROUPS")
            found[group] += len(names)
        return found

    def calls(self) -> int:
        """Calls of our functions, comprehensions among them."""
        return self.frames.total()

    def sizes(self) -> dict[str, int]:
        """Files, functions and frames that were entered at least once."""
        functions = sum(map(len, self.functions().values()))
        return {"files": len({file for file, _ in self.frames}), "functions": functions, "frames": len(self.frames)}


@dataclass(frozen=True, slots=True)
class Counted:
    """What a whole answer to a long prompt enters, and what follows it `after`; a stream, and one without content."""

    whole: Entered
    after: Entered
    stream: Entered
    empty: Entered


def counts() -> dict[str, float]:
    """The content of counts.json."""
    found = measure()
    whole, after, stream, both = found.whole, found.after, found.stream, Counter(found.whole.frames)
    both.update(found.after.frames)
    return {
        **{f"whole/{name}": n for name, n in whole.sizes().items()},
        "whole/calls": whole.calls() / _REQUESTS,
        "whole/c_calls": whole.c_calls / _REQUESTS,
        **{f"stream/{name}": n for name, n in stream.sizes().items()},
        "chunk/calls": (stream.calls() - found.empty.calls()) / (_CHUNKS - 1),
        "chunk/c_calls": (stream.c_calls - found.empty.c_calls) / (_CHUNKS - 1),
        **{f"after/{name}": n for name, n in after.sizes().items()},
        "after/calls": after.calls() / _REQUESTS,
        "after/c_calls": after.c_calls / _REQUESTS,
        **{f"with_after/{name}": n for name, n in Entered(both).sizes().items()},
        **{
            f"{path}/functions in {group}": n
            for path, entered in (("whole", whole), ("stream", stream), ("after", after))
            for group, n in entered.by_group().items()
            if n
        },
    }


def measure() -> Counted:
    """Send the requests, and note what they enter."""
    # A method of C, as the clock itself: it counts as a call.
    with patch.object(time, "perf_counter", deque(_TICK_S * i for i in range(10**5)).popleft):
        return asyncio.run(_measure())


async def _measure() -> Counted:
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        asked = config([url], Path(folder))
        asked["router"]["seed"] = 0
        made = load_config(asked)
        router = Router(made, {engine.name: fixed_address(url) for engine in made.engines})
        await router.start()
        for task in router._tasks:  # what comes by the clock would be counted, the more the slower this machine is
            task.cancel()
        whole, stream = body(LONG, 16), body(SHORT, _CHUNKS, pace_ms=2)
        empty = body(SHORT, 1, pace_ms=2)
        await _ask_and_observe(router, whole, _WARM)
        await _ask_and_observe(router, stream)
        one, after = await _entered(lambda: _ask_and_observe(router, whole, _REQUESTS))
        many, _ = await _entered(lambda: _ask_and_observe(router, stream))
        first, _ = await _entered(lambda: _ask_and_observe(router, empty))
        await router.stop()
    server.close()
    return Counted(one, after, many, first)


async def _entered(work: Callable[[], Awaitable[None]]) -> tuple[Entered, Entered]:
    """What runs for `work`, and what observers do with its attempts."""
    found, after = Entered(), Entered()
    observing = False

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal observing
        code = frame.f_code
        if not code.co_filename.startswith(_OURS):
            return
        if code.co_qualname == _OBSERVE and event in ("call", "return"):
            observing = event == "call"
        elif code.co_qualname in _OF_QUEUE:
            return
        one = after if observing else found
        if event == "call":
            one.frames[code.co_filename, code.co_qualname] += 1
        elif event == "c_call":
            one.c_calls += 1

    sys.setprofile(note)
    try:
        await work()
    finally:
        sys.setprofile(None)
    return found, after


async def _ask_and_observe(router: Router, asked: dict[str, Any], n: int = 1) -> None:
    """Send `n` requests, and pass each attempt to the observers at once: its queue's timer would do so at some time."""
    for _ in range(n):
        await _ask(router.app, asked)
        router.parts.attempts.close()


async def _ask(app: Any, asked: dict[str, Any]) -> None:
    """One request without a socket between; raises unless it was answered."""
    messages = [{"type": "http.request", "body": orjson.dumps(asked), "more_body": False}]
    sent: list[dict[str, Any]] = []
    path = "/v1/chat/completions"
    headers = [(b"host", b"here"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": headers}

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await app({**scope, "query_string": b""}, receive, send)
    assert sent[0]["status"] == 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the functions by path and file, and write nothing")
    if parser.parse_args().list:
        _print_names(measure())
        return
    FILE.write_text(json.dumps({name: round(value, 1) for name, value in counts().items()}, indent=2) + "\n")
    print(FILE.read_text(), end="")


def _print_names(found: Counted) -> None:
    for path in ("whole", "stream", "after"):
        entered: Entered = getattr(found, path)
        print(f"{path}: {entered.sizes()}")
        for file, names in entered.functions().items():
            print(f"  {file} ({len(names)}): {', '.join(names)}")


if __name__ == "__main__":
    main()
