"""A router, or a mock engine, as a process without Ray, for benchmarks: prints its address, serves until it is ended.

`python router_process.py engine NAME` or `... router URL [KEY=VALUE ...]`; it runs with the packages
of whatever source tree PYTHONPATH names, so that two versions can be measured in one run.
"""

import asyncio
import socket
import sys
from typing import Any

import uvicorn

ARMS = ("plain", "suffix", "hybrid", "general", "math", "code", "chat")


async def engine(name: str) -> None:
    """A mock engine that takes no time."""
    try:
        from draftpick.engines.mock.app import MockSpec, mock_app
    except ImportError:  # a checkout from before the import namespace
        from engines.mock import MockSpec, mock_app

    await _serve(mock_app(MockSpec(step_s=0, prefill_s=0, output_tokens=16), model="mock-model", engine=name))


async def router(url: str, *options: str) -> None:
    """A router over the engine at `url`, as every arm of the shipped policy, which decides; records are off."""
    try:
        from draftpick.router.config.router_config import load_config
        from draftpick.router.router import Router
    except ImportError:  # a checkout from before the import namespace
        from router.config import load_config
        from router.router import Router

    settings: dict[str, Any] = dict(option.split("=", 1) for option in options)
    # Without drift tests: to them one engine under seven names looks like seven that change, and decisions then differ.
    still = {"drift": {"enabled": False}}
    settings = {"default_engine": "plain", "policy": "embedded", "online": still, **settings}
    engines = [{"name": name, "url": url} for name in ARMS]
    config = load_config({"target": {"name": "mock-model"}, "engines": engines, "router": settings})

    async def address() -> list[str]:
        return [url]

    made = Router(config, dict.fromkeys(ARMS, address))
    await made.start()
    await _serve(made.app)


async def _serve(app: Any) -> None:
    """Serve in the same way whichever tree `app` is from: what is compared is the application."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, interface="asgi3", log_config=None, access_log=False, lifespan="off")
    await uvicorn.Server(config).serve(sockets=[listening])


if __name__ == "__main__":
    asyncio.run({"engine": engine, "router": router}[sys.argv[1]](*sys.argv[2:]))
