"""Mock engines in one process, until it is ended: `python -m tests.bench.loop.engines`; prints their addresses as JSON.

`POST /mock/state` changes one while it runs.
"""

import asyncio
import json

import uvloop

from draftpick.engines.http.server import LocalServer
from draftpick.engines.mock.app import mock_app
from tests.bench.loop.world import ENGINES, MODEL


async def main() -> None:
    urls = {}
    for name, spec in ENGINES.items():
        server = LocalServer(mock_app(spec, model=MODEL, engine=name))
        await server.start()
        urls[name] = server.url
    print(json.dumps(urls), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
