"""Polls the load and profile pages of engines, twice per second; engines without such pages are skipped."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable

from draftpick.engines import load_report as load
from draftpick.engines.errors import EngineError
from draftpick.engines.http.client import EngineClient
from draftpick.engines.load_report import LoadReport
from draftpick.engines.profile import profile
from draftpick.engines.profile.profile import Profile, ProfileError
from draftpick.engines.replicas import Replica, ReplicaTable
from draftpick.router.load.load_model import LoadModel

log = logging.getLogger("draftpick.router")

_PATIENCE_S = 2.0
_ASK_AGAIN_S = 30.0
_MAX_BYTES = 2**20


class EnginePoller:
    """Polls all replicas (`run`). An arm's profile is that of its first replica with one."""

    def __init__(
        self,
        client: EngineClient,
        replicas: ReplicaTable,
        model: LoadModel,
        every_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._replicas, self._model, self._every_s, self._clock = client, replicas, model, every_s, clock
        self._silent_until: dict[str, float] = {}
        self._profile_due: dict[str, float] = {}

    async def run(self) -> None:
        """Poll periodically, forever."""
        while True:
            await self.poll()
            await asyncio.sleep(self._every_s)

    async def poll(self) -> None:
        """Poll every replica once."""
        everywhere = [(arm, r) for arm, there in self._replicas.by_arm.items() for r in there]
        await asyncio.gather(*(self._poll_replica(arm, replica) for arm, replica in everywhere))
        urls = {replica.url for _, replica in everywhere}
        for known in (self._profile_due, self._silent_until):
            for url in known.keys() - urls:
                del known[url]
        self._model.refresh()

    async def _poll_replica(self, arm: str, replica: Replica) -> None:
        if self._clock() < self._silent_until.get(replica.url, 0.0):
            return
        page = await self._page(f"{replica.url}{load.PATH}")
        report = LoadReport.from_json(page) if page is not None else None
        if report is not None:
            replica.record_report(report, self._clock())
        elif replica.report is None:
            self._silent_until[replica.url] = self._clock() + _ASK_AGAIN_S
            return
        if self._clock() >= self._profile_due.get(replica.url, 0.0):
            await self._poll_profile(arm, replica)

    async def _poll_profile(self, arm: str, replica: Replica) -> None:
        page = await self._page(f"{replica.url}{profile.PATH}")
        # A missing profile may be measured later.
        self._profile_due[replica.url] = self._clock() + _ASK_AGAIN_S if page is None else math.inf
        if page is None:
            return
        try:
            found = Profile.from_json(page)
        except ProfileError as error:
            log.warning("engine %s has an invalid profile: %s", arm, error)
            return
        table = self._model.steps[arm]
        if table.profile is None or table.profile.build != found.build:
            table.use_profile(found)

    async def _page(self, url: str) -> bytes | None:
        """The body of a page; None if it is missing or too slow."""
        parts: list[bytes] = []
        with contextlib.suppress(EngineError, TimeoutError):
            async with asyncio.timeout(_PATIENCE_S), self._client.send(url, "GET", [], b"", stream=False) as answer:
                async for chunk in answer.chunks:
                    parts.append(chunk)
                    if sum(map(len, parts)) > _MAX_BYTES:
                        return None
                return b"".join(parts) if answer.status == 200 else None
        return None
