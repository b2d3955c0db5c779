"""Measures an engine's own profile at startup (`deployment.profile: auto`), one engine at a time.

A measurement while other engines of the node start would be wrong. So all starting engines hold a shared lock of the
node, and the measuring engine holds it exclusively.
"""

import asyncio
import contextlib
import fcntl
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO

import httpx

from draftpick.engines.errors import DraftpickError
from draftpick.engines.profile import cache as profile_cache
from draftpick.engines.profile import identity
from draftpick.engines.profile.identity import EngineIdentity
from draftpick.engines.profile.measure import ProfilePlan, measure_profile

_log = logging.getLogger(__name__)
MAX_DISAGREEMENT = 0.15
"""Maximum relative difference between the two passes of a measurement."""


@asynccontextmanager
async def starting() -> AsyncIterator[None]:
    """Hold the shared lock; waits while another engine of the node measures itself."""
    async with _lock(fcntl.LOCK_SH):
        yield


async def measure_once(url: str, model: str) -> None:
    """Measure the engine at `url`, which is this one, unless this machine has its profile already.

    A failed measurement does not stop the engine: it is logged, and no profile is written.
    """
    async with _lock(fcntl.LOCK_EX):
        try:
            async with httpx.AsyncClient(base_url=url) as client:
                own = EngineIdentity.from_json((await client.get(identity.PATH)).content)
            if own is not None and profile_cache.read(own) is None:
                await _measure(url, model, own.max_running)
        except (DraftpickError, httpx.HTTPError, OSError) as error:
            _log.warning("no profile of %s: %s", model, error)


async def _measure(url: str, model: str, max_running: int | None) -> None:
    start = time.monotonic()
    result = await measure_profile(url, plan=ProfilePlan.quick(max_running), model=model)
    _log.info("profile of %s measured in %.0f s", model, time.monotonic() - start)
    if result.disagreement > MAX_DISAGREEMENT:
        _log.warning(
            "no profile of %s: its two passes differ by %.0f %%, so the machine was busy; run `draftpick profile`",
            model, 100 * result.disagreement,
        )  # fmt: skip
        return
    profile_cache.write(result.profile)


@asynccontextmanager
async def _lock(kind: int) -> AsyncIterator[None]:
    """Lock all engines that share this cache; no lock if the cache is not writable."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context(_lock_file())
            await asyncio.to_thread(fcntl.flock, file, kind)
        yield


def _lock_file() -> IO[bytes]:
    profile_cache.folder().mkdir(parents=True, exist_ok=True)
    return open(profile_cache.folder() / ".lock", "ab")
