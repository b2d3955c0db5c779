"""A router, or a mock engine, as a process without Ray, for benchmarks: prints its address, serves until it is ended.

`python router_process.py engine NAME` or `... router URL [KEY=VALUE ...]`; it runs with the packages
of whatever source tree PYTHONPATH names, so that two versions can be measured in one run.
"""

import asyncio
import inspect
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn

TREE = Path.cwd()
NAMESPACE = (TREE / "draftpick").is_dir()
"""False in a checkout from before the import namespace, which the environment may have from another tree."""
ARMS = ("plain", "suffix", "hybrid", "general", "math", "code", "chat")


async def engine(name: str) -> None:
    """A mock engine that takes no time."""
    if NAMESPACE:
        from draftpick.engines.mock.app import MockSpec, mock_app
    else:
        from engines.mock import MockSpec, mock_app

    await _serve(mock_app(MockSpec(step_s=0, prefill_s=0, output_tokens=16), model="mock-model", engine=name))


async def router(url: str, *options: str) -> None:
    """A router over the engine at `url`, as every arm of the shipped policy, which decides; records are off."""
    if NAMESPACE:
        from draftpick.router.config.router_config import load_config
        from draftpick.router.router import Router
    else:
        from router.config import load_config
        from router.router import Router
    assert Path(inspect.getfile(Router)).is_relative_to(TREE), f"not the router of {TREE}"

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
    listening.listen()  # who reads the address may connect at once
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, interface="asgi3", log_config=None, access_log=False, lifespan="off")
    await uvicorn.Server(config).serve(sockets=[listening])


if __name__ == "__main__":
    asyncio.run({"engine": engine, "router": router}[sys.argv[1]](*sys.argv[2:]))
