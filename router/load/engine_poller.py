"""Polls the load and profile pages of engines, twice per second; engines without such pages are skipped.

An engine whose answers contradict its profile for long (`StepTimeModel.contradicted`) is asked to measure it again, at
most `_MAX_REPEATS` times for each address.
"""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable

from draftpick.engines import load_report as load
from draftpick.engines.http.client import EngineClient
from draftpick.engines.load_report import LoadReport
from draftpick.engines.profile import profile
from draftpick.engines.profile.profile import Profile, ProfileError
from draftpick.engines.replicas import Replica, ReplicaTable
from draftpick.router.load.engine_page import read_page
from draftpick.router.load.load_model import LoadModel
from draftpick.router.supervision import Supervisor

log = logging.getLogger("draftpick.router")

_ASK_AGAIN_S, _NEW_PROFILE_S = 30.0, 10.0
_MAX_REPEATS = 3


class EnginePoller:
    """Polls all replicas (`run`). An engine's profile is that of its first replica with one."""

    def __init__(
        self,
        client: EngineClient,
        replicas: ReplicaTable,
        model: LoadModel,
        every_s: float,
        clock: Callable[[], float] = time.monotonic,
        supervisor: Supervisor | None = None,
    ) -> None:
        """`supervisor`: gets the errors of each engine's pages, so that one engine's do not concern the others."""
        self._supervisor = supervisor or Supervisor(Counter())
        self._client, self._replicas, self._model, self._every_s, self._clock = client, replicas, model, every_s, clock
        self._repeats: dict[str, int] = {}
        self._silent_until: dict[str, float] = {}
        self._profile_due: dict[str, float] = {}

    async def run(self) -> None:
        """Poll periodically, forever."""
        while True:
            await self.poll()
            await asyncio.sleep(self._every_s)

    async def poll(self) -> None:
        """Poll every replica once."""
        everywhere = [(engine, r) for engine, there in self._replicas.by_engine.items() for r in there]
        await asyncio.gather(*(self._supervisor.attempt("load", self._poll_replica, *each) for each in everywhere))
        urls = {replica.url for _, replica in everywhere}
        for known in (self._profile_due, self._silent_until, self._repeats):
            for url in known.keys() - urls:
                del known[url]
        self._model.refresh()

    async def _poll_replica(self, engine: str, replica: Replica) -> None:
        if self._clock() < self._silent_until.get(replica.url, 0.0):
            return
        page = await read_page(self._client, f"{replica.url}{load.PATH}")
        report = LoadReport.from_json(page) if page is not None else None
        if report is not None:
            replica.record_report(report, self._clock())
        elif replica.report is None:
            self._silent_until[replica.url] = self._clock() + _ASK_AGAIN_S
            return
        if self._clock() >= self._profile_due.get(replica.url, 0.0):
            await self._poll_profile(engine, replica)
        elif self._model.steps[engine].contradicted and self._repeats.get(replica.url, 0) < _MAX_REPEATS:
            await self._repeat_profile(engine, replica)

    async def _repeat_profile(self, engine: str, replica: Replica) -> None:
        """Ask an engine to measure its profile again, and read it later."""
        began = await read_page(self._client, f"{replica.url}{profile.PATH}", "POST") is not None
        self._repeats[replica.url] = self._repeats.get(replica.url, 0) + 1 if began else _MAX_REPEATS
        self._model.steps[engine].forget_answers()
        if began:
            log.warning("answers of engine %s contradict its profile: it measures itself again", engine)
            self._profile_due[replica.url] = self._clock() + _NEW_PROFILE_S

    async def _poll_profile(self, engine: str, replica: Replica) -> None:
        page = await read_page(self._client, f"{replica.url}{profile.PATH}")
        # A missing profile may be measured later.
        self._profile_due[replica.url] = self._clock() + _ASK_AGAIN_S if page is None else math.inf
        if page is None:
            return
        try:
            found = Profile.from_json(page)
        except ProfileError as error:
            log.warning("engine %s has an invalid profile: %s", engine, error)
            return
        table = self._model.steps[engine]
        is_first = replica in self._replicas.by_engine.get(engine, [])[:1]
        if table.profile is None or (is_first and table.profile != found):
            self._model.use_profile(engine, found)
