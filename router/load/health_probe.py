"""Asks engines that could not be reached whether they are back, so that their recovery needs no client's request."""

import asyncio
import contextlib

from draftpick.engines.errors import EngineError
from draftpick.engines.http.client import EngineClient
from draftpick.engines.replicas import Replica, ReplicaTable

_EVERY_S, _PATIENCE_S = 1.0, 2.0
_PATH = "/health"


class HealthProbe:
    """Probes unreachable replicas (`run`). Any answer below 500 makes one reachable, and its breaker half open."""

    def __init__(self, client: EngineClient, replicas: ReplicaTable) -> None:
        self._client, self._replicas = client, replicas

    async def run(self) -> None:
        """Probe periodically, forever."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await self.probe()

    async def probe(self) -> None:
        """Probe each unreachable replica once."""
        gone = [replica for there in self._replicas.by_engine.values() for replica in there if replica.unreachable]
        await asyncio.gather(*map(self._ask, gone))

    async def _ask(self, replica: Replica) -> None:
        with contextlib.suppress(EngineError, TimeoutError):
            sending = self._client.send(f"{replica.url}{_PATH}", "GET", [], b"", stream=False)
            async with asyncio.timeout(_PATIENCE_S), sending as answer:
                if answer.status < 500:
                    replica.mark_reachable()
