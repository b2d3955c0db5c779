"""Mock engines in one process, until it is ended: `python -m tests.bench.load.engines NAME ...`.

It prints their addresses as JSON.
"""

import asyncio
import json
import sys
from collections.abc import Sequence

import uvloop

from engines.http import LocalServer
from engines.mock import mock_app
from tests.bench.load.world import ENGINES, MODEL


async def main(names: Sequence[str]) -> None:
    servers = [LocalServer(mock_app(ENGINES[name], model=MODEL, engine=name)) for name in names]
    for server in servers:
        await server.start()
    print(json.dumps([server.url for server in servers]), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:]))
