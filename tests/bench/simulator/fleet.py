"""Mock engines and a router over them, in a process of their own: `python -m tests.bench.simulator.fleet JSON`.

JSON: `{"replicas": {arm: n}, "specs": {arm: MockSpec}}`; prints the router's address, and serves until it is ended.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import uvloop

from draftpick.engines.http.server import LocalServer
from draftpick.engines.mock.app import MockSpec, mock_app
from draftpick.router.config.router_config import load_config
from draftpick.router.router import Router

MODEL = "mock-model"


def asked(replicas: Mapping[str, int], specs: Mapping[str, MockSpec]) -> str:
    """What this process is to be given."""
    return json.dumps({"replicas": dict(replicas), "specs": {name: spec.model_dump() for name, spec in specs.items()}})


async def main(on_progress: dict[str, Any]) -> None:
    urls: dict[str, list[str]] = {}
    for arm, count in on_progress["replicas"].items():
        for number in range(count):
            spec = MockSpec.model_validate({**on_progress["specs"][arm], "seed": number})
            server = LocalServer(mock_app(spec, model=MODEL, engine=arm))
            await server.start()
            urls.setdefault(arm, []).append(server.url)
    fleet = [{"name": arm, "url": addresses[0]} for arm, addresses in urls.items()]
    settings = {"policy": "fixed", "featurizer": "none", "default_engine": next(iter(urls))}
    config = load_config({"target": {"name": MODEL}, "engines": fleet, "router": settings})
    router = Router(config, {arm: _these(addresses) for arm, addresses in urls.items()})
    await router.start()
    server = LocalServer(router.app)
    await server.start()
    print(server.url, flush=True)
    await asyncio.Event().wait()


def _these(addresses: list[str]) -> Callable[[], Awaitable[list[str]]]:
    async def given() -> list[str]:
        return addresses

    return given


if __name__ == "__main__":
    uvloop.run(main(json.loads(sys.argv[1])))
