"""What a request costs in counts that no machine changes: calls of our own functions, and calls that these make.

`python -m tests.bench.counts` writes them to counts.json, to which `tests/router/request/test_counts.py` holds the
path: a change that makes it dearer is seen at once, one that makes it cheaper asks for a new file.
"""

import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import orjson

from draftpick.router.config.router_config import load_config
from draftpick.router.router import Router, fixed_address
from tests.bench.overhead.contestants import config
from tests.bench.overhead.engine import Engine
from tests.bench.overhead.measures import LONG, SHORT, body

FILE = Path(__file__).parent / "counts.json"
_ROOT = Path(__file__).parents[2]
_OURS = tuple(f"{_ROOT / package}/" for package in ("engines", "router"))
_WARM, _REQUESTS, _CHUNKS = 20, 40, 50


def counts() -> dict[str, float]:
    """`calls` of our functions and `c_calls` from them: of a whole answer to a long prompt, and of a streamed chunk."""
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
        found = {}
        for _ in range(_WARM):
            await _ask(router.app, whole)
        await _ask(router.app, stream)
        one = await _counted(lambda: _several(router.app, whole, _REQUESTS))
        many, first = await _counted(lambda: _ask(router.app, stream)), await _counted(lambda: _ask(router.app, empty))
        for name in ("calls", "c_calls"):
            found[f"request/{name}"] = one[name] / _REQUESTS
            found[f"chunk/{name}"] = (many[name] - first[name]) / (_CHUNKS - 1)
        await router.stop()
    server.close()
    return found


async def _counted(work: Callable[[], Any]) -> Counter[str]:
    counter: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(_OURS):
            counter[f"{event}s"] += 1

    sys.setprofile(note)
    try:
        await work()
    finally:
        sys.setprofile(None)
    return counter


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
