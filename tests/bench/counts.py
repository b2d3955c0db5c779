"""What a request enters, in counts that no machine changes: our files and functions, calls of these, and calls into C.

`python -m tests.bench.counts` writes counts.json, to which `tests/router/request/test_counts.py` holds the request
path:
a change that makes it dearer fails, one that makes it much cheaper asks for a new file. `functions` are those with a
name
and lambdas; `frames` count comprehensions and generator expressions as well. Tracing is off.
"""

import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

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
_WARM, _REQUESTS, _CHUNKS = 20, 40, 50
_COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")


@dataclass
class Entered:
    """What ran: code objects of ours by file and name with their calls, and calls from ours into C."""

    frames: Counter[tuple[str, str]] = field(default_factory=Counter)
    c_calls: int = 0

    def calls(self) -> int:
        """Calls of our functions, comprehensions among them."""
        return self.frames.total()

    def sizes(self) -> dict[str, int]:
        """Files, functions and frames that were entered at least once."""
        named = {one for one in self.frames if not one[1].endswith(_COMPREHENSIONS)}
        return {"files": len({file for file, _ in self.frames}), "functions": len(named), "frames": len(self.frames)}


def counts() -> dict[str, float]:
    """Of a whole answer to a long prompt (`whole/`), of a stream (`stream/`), and of one streamed chunk (`chunk/`)."""
    return asyncio.run(_counts())


async def _counts() -> dict[str, float]:
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        asked = config([url], Path(folder))
        # What comes by the clock would be counted, the more the slower this machine is.
        asked["router"]["load"] = {"report_interval_s": 3600.0}
        made = load_config(asked)
        router = Router(made, {engine.name: fixed_address(url) for engine in made.engines})
        await router.start()
        whole, stream = body(LONG, 16), body(SHORT, _CHUNKS, pace_ms=2)
        empty = body(SHORT, 1, pace_ms=2)
        for _ in range(_WARM):
            await _ask(router.app, whole)
        await _ask(router.app, stream)
        one = await _entered(lambda: _several(router.app, whole, _REQUESTS))
        many, first = await _entered(lambda: _ask(router.app, stream)), await _entered(lambda: _ask(router.app, empty))
        await router.stop()
    server.close()
    return {
        **{f"whole/{name}": n for name, n in one.sizes().items()},
        "whole/calls": one.calls() / _REQUESTS,
        "whole/c_calls": one.c_calls / _REQUESTS,
        **{f"stream/{name}": n for name, n in many.sizes().items()},
        "chunk/calls": (many.calls() - first.calls()) / (_CHUNKS - 1),
        "chunk/c_calls": (many.c_calls - first.c_calls) / (_CHUNKS - 1),
    }


async def _entered(work: Callable[[], Awaitable[None]]) -> Entered:
    found = Entered()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code.co_filename.startswith(_OURS):
            if event == "call":
                found.frames[frame.f_code.co_filename, frame.f_code.co_qualname] += 1
            elif event == "c_call":
                found.c_calls += 1

    sys.setprofile(note)
    try:
        await work()
    finally:
        sys.setprofile(None)
    return found


async def _several(app: Any, asked: dict[str, Any], n: int) -> None:
    for _ in range(n):
        await _ask(app, asked)


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
    FILE.write_text(json.dumps({name: round(value, 1) for name, value in counts().items()}, indent=2) + "\n")
    print(FILE.read_text(), end="")


if __name__ == "__main__":
    main()
