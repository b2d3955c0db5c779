"""An engine that measures its own profile at its start (`deployment.profile: auto`), in its turn.

What is measured while other engines of the node start would be wrong for as long as it is kept. So all engines hold a
lock of the node together while they start, and the one that measures holds it alone.
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
from draftpick.engines.profile.measure import measure_profile

_log = logging.getLogger(__name__)
MAX_DISAGREEMENT = 0.15
"""Share by which the two passes of a measurement may differ that is kept."""


@asynccontextmanager
async def starting() -> AsyncIterator[None]:
    """Hold this block back while another engine of the node measures itself."""
    async with _lock(fcntl.LOCK_SH):
        yield


async def measure_once(url: str, model: str) -> None:
    """Measure the engine at `url`, which is this one, unless it was measured on this machine before.

    An engine that cannot be measured serves all the same: that is logged, and nothing is kept.
    """
    async with _lock(fcntl.LOCK_EX):
        try:
            async with httpx.AsyncClient(base_url=url) as client:
                told = EngineIdentity.from_json((await client.get(identity.PATH)).content)
            if told is not None and profile_cache.read(told) is None:
                await _measure(url, model)
        except (DraftpickError, httpx.HTTPError, OSError) as error:
            _log.warning("no profile of %s: %s", model, error)


async def _measure(url: str, model: str) -> None:
    began = time.monotonic()
    found = await measure_profile(url, model=model)
    _log.info("profile of %s measured in %.0f s", model, time.monotonic() - began)
    if found.disagreement > MAX_DISAGREEMENT:
        _log.warning(
            "no profile of %s: its two passes differ by %.0f %%, so the machine was busy; run `draftpick profile`",
            model, 100 * found.disagreement,
        )  # fmt: skip
        return
    profile_cache.write(found.profile)


@asynccontextmanager
async def _lock(kind: int) -> AsyncIterator[None]:
    """The lock of all engines that share this cache; none where it cannot be written to."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context(_lock_file())
            await asyncio.to_thread(fcntl.flock, file, kind)
        yield


def _lock_file() -> IO[bytes]:
    profile_cache.folder().mkdir(parents=True, exist_ok=True)
    return open(profile_cache.folder() / ".lock", "ab")
