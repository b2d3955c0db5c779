"""Mock engines in one process, until it is ended: `python -m tests.bench.load.engines NAME ...`.

It prints their addresses as JSON. `POST /silent` makes one's page of its load hang, `POST /talking` ends that;
`POST /dead` makes it refuse everything.
"""

import asyncio
import json
import sys
from collections.abc import Sequence

import uvloop
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from draftpick.engines import load_report as load
from draftpick.engines.http.server import LocalServer
from draftpick.engines.mock.app import mock_app
from tests.bench.load.world import ENGINES, MODEL


class Faulty:
    """An engine that may fall silent, or die."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._silent, self._dead = app, False, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        if path in ("/silent", "/talking", "/dead"):
            self._silent, self._dead = path == "/silent", path == "/dead"
            await Response()(scope, receive, send)
        elif self._dead:
            await Response(status_code=503)(scope, receive, send)
        elif self._silent and path == load.PATH:
            await asyncio.sleep(60)
        else:
            await self._app(scope, receive, send)


async def main(names: Sequence[str]) -> None:
    servers = [LocalServer(Faulty(mock_app(ENGINES[name], model=MODEL, engine=name))) for name in names]
    for server in servers:
        await server.start()
    print(json.dumps([server.url for server in servers]), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:]))
