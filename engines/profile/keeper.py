"""Keeps an engine's own profile (`deployment.profile: auto`): measured before its first request, or while it is idle.

On a node one engine measures at a time, and only while none starts or serves. A client request that arrives ends the
measurement within a step; it is resumed when the node is idle again, with the points that are left. A router whose
answers contradict the profile for long may ask for another measurement (`POST /draftpick/profile`).
"""

import asyncio
import contextlib
import logging
import time

from draftpick.engines.errors import DraftpickError
from draftpick.engines.http.client import EngineClient
from draftpick.engines.profile import cache as profile_cache
from draftpick.engines.profile.concurrent_decode import Target
from draftpick.engines.profile.identity import EngineIdentity
from draftpick.engines.profile.measure import ProfilePlan, ProfileResult, ProfileRun, find_identity, find_target
from draftpick.engines.profile.node_lock import measuring, node_serves, until_idle
from draftpick.engines.profile.prompts import TEXTS

_log = logging.getLogger(__name__)
MAX_DISAGREEMENT = 0.15
"""Maximum relative difference between the two passes of a measurement."""
READY_WITHIN_S = 300.0
"""How long an engine waits for its turn and its measurement before it is ready without a profile."""
MAX_REPEATS = 3
"""Repeats of a measurement that failed, and of one that a router contradicts; each for the life of the engine."""
_RETRY_S = 30.0
_QUIET_S = 1.0
_WATCH_S = 0.01


class ProfileKeeper:
    """Measures the engine at `url`, which is this one. `measured_s`: seconds of its last measurement."""

    def __init__(self, url: str, model: str) -> None:
        self._url, self._model = url, model
        self._failures = self._repeats = 0
        self._rests = False
        self._wanted = asyncio.Event()
        self._done = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.measured_s: float | None = None

    async def start(self) -> None:
        """Start, and return once this machine has the profile, or without it: after a measurement that failed, or after
        `READY_WITHIN_S`, or if an engine of the node serves clients."""
        self._task = asyncio.create_task(self._run())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._done.wait(), READY_WITHIN_S)

    async def stop(self) -> None:
        """Stop a running measurement."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def repeat(self) -> bool:
        """Measure again when the node is idle; False during a measurement, and after `MAX_REPEATS` times."""
        if not self._rests or self._repeats >= MAX_REPEATS:
            return False
        self._rests = False
        self._repeats += 1
        self._wanted.set()
        return True

    async def _run(self) -> None:
        client = EngineClient(first_byte_timeout_s=180, timeout_s=180)
        try:
            await self._keep(client)
        except (DraftpickError, OSError) as error:
            _log.warning("no profile of %s: %s", self._model, error)
        finally:
            self._done.set()
            await client.close()

    async def _keep(self, client: EngineClient) -> None:
        target = await find_target(client, self._url, self._model)
        own = await find_identity(target)
        while True:
            await self._measure(target, own, replace=self._wanted.is_set())
            self._wanted.clear()
            self._done.set()
            self._rests = True
            await self._wanted.wait()

    async def _measure(self, target: Target, own: EngineIdentity, replace: bool) -> None:
        """Measure until there is a profile, or `MAX_REPEATS` measurements have failed."""
        while self._failures <= MAX_REPEATS:
            try:
                result = await self._measured(target, own, replace)
            except (DraftpickError, OSError) as error:
                _log.warning("no profile of %s: %s", self._model, error)
            else:
                if result is None or self._accepts(result):
                    return
            self._failures += 1
            self._done.set()  # an engine does not wait for another try
            await asyncio.sleep(_RETRY_S * self._failures)

    def _accepts(self, result: ProfileResult) -> bool:
        if result.disagreement > MAX_DISAGREEMENT:
            _log.warning(
                "no profile of %s: its two passes differ by %.0f %%, so the machine was busy; run `draftpick profile`",
                self._model, 100 * result.disagreement,
            )  # fmt: skip
            return False
        profile_cache.write(result.profile)
        _log.info(
            "profile of %s measured in %.1f s, its two passes differ by %.1f %%",
            self._model, self.measured_s, 100 * result.disagreement,
        )  # fmt: skip
        return True

    async def _measured(self, target: Target, own: EngineIdentity, replace: bool) -> ProfileResult | None:
        """Measure in as many turns as it takes; None if this machine has the profile already."""
        run, taken_s = ProfileRun(target, own, ProfilePlan.quick(own.max_running)), 0.0
        while True:
            if not replace and profile_cache.read(own) is not None:
                return None
            async with measuring():
                if replace or profile_cache.read(own) is None:
                    began_s = time.monotonic()
                    result = None if node_serves() else await _until_served(run)
                    taken_s += time.monotonic() - began_s
                    if result is not None:
                        self.measured_s = taken_s
                        return result
            self._done.set()  # a busy node needs its engines
            await until_idle(_QUIET_S)


async def _until_served(run: ProfileRun) -> ProfileResult | None:
    """Run a measurement; None if an engine of the node has got a client request, which ends it."""
    task = asyncio.create_task(run.run(TEXTS))
    try:
        while not task.done():
            await asyncio.wait([task], timeout=_WATCH_S)
            if node_serves() and not task.done():
                return None
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
