"""A router, or a mock engine, as a process without Ray, for benchmarks: prints its address, serves until it is ended.

`python router_process.py engine NAME` or `... router URL [KEY=VALUE ...]`; it runs with the packages
of whatever source tree PYTHONPATH names, so that two versions can be measured in one run.
"""

import asyncio
import socket
import sys
from collections.abc import Callable, Coroutine
from importlib import import_module
from pathlib import Path
from typing import Any

import uvicorn

TREE = Path.cwd()
_HAS_NAMESPACE = (TREE / "draftpick").is_dir()
ARMS = ("plain", "suffix", "hybrid", "general")


async def engine(name: str) -> None:
    """A mock engine that takes no time."""
    made = _module("draftpick.engines.mock.app", "engines.mock")
    await _serve(made.mock_app(made.MockSpec(step_s=0, prefill_s=0, output_tokens=16), model="mock-model", engine=name))


async def router(url: str, *options: str) -> None:
    """A router over the engine at `url`, as every arm of the shipped policy, which decides; records are off."""
    load_config = _module("draftpick.router.config.router_config", "router.config").load_config
    of_router = _module("draftpick.router.router", "router.router")
    settings: dict[str, Any] = dict(option.split("=", 1) for option in options)
    # Without drift tests: to them one engine under seven names looks like seven that change, and decisions then differ.
    still = {"drift": {"enabled": False}}
    settings = {"default_engine": "plain", "policy": "embedded", "online": still, **settings}
    engines = [{"name": name, "url": url} for name in ARMS]
    config = load_config({"target": {"name": "mock-model"}, "engines": engines, "router": settings})

    async def address() -> list[str]:
        return [url]

    made = of_router.Router(config, dict.fromkeys(ARMS, address))
    await made.start()
    await _serve(made.app)


def _module(name: str, before: str) -> Any:
    """A module of this tree, not of the one installed; `before`: its name before the import namespace."""
    found = import_module(name if _HAS_NAMESPACE else before)
    assert Path(str(found.__file__)).is_relative_to(TREE), f"{found.__file__} is not of {TREE}"
    return found


async def _serve(app: Any) -> None:
    """Serve in the same way whichever tree `app` is from: what is compared is the application."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen()  # who reads the address may connect at once
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, interface="asgi3", log_config=None, access_log=False, lifespan="off")
    await uvicorn.Server(config).serve(sockets=[listening])


if __name__ == "__main__":
    served: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {"engine": engine, "router": router}
    asyncio.run(served[sys.argv[1]](*sys.argv[2:]))
