"""Locks shared by the engines of one node: who starts, who measures, who serves.

All are advisory locks of files beside the profiles, which the kernel releases when a process dies. Without a writable
folder there are none.
"""

import asyncio
import contextlib
import fcntl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import IO

from draftpick.engines.profile import cache as profile_cache

_POLL_S = 0.05
_RETRY_S = 0.01


@asynccontextmanager
async def starting() -> AsyncIterator[None]:
    """Held by every starting engine; waits while one measures, since a start would disturb it."""
    async with _held(".lock", fcntl.LOCK_SH):
        yield


@asynccontextmanager
async def measuring() -> AsyncIterator[None]:
    """Held by the one engine that measures; waits while engines start or another one measures."""
    async with _held(".lock", fcntl.LOCK_EX):
        yield


class Serving:
    """Counts the client requests of this process; all engines of the node see that it has some (`node_serves`)."""

    def __init__(self) -> None:
        self._number = 0
        self._file: IO[bytes] | None = None
        with contextlib.suppress(OSError):
            self._file = _open(".serving")

    def begin(self) -> None:
        """Count one more request."""
        self._number += 1
        if self._number == 1:
            self._lock()

    def end(self) -> None:
        """Count one request less."""
        self._number -= 1
        if not self._number and self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file; the kernel does so at the end of the process."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _lock(self) -> None:
        """Lock without waiting: `node_serves` of another process may hold the file for an instant."""
        if self._number and self._file is not None and not _try_lock(self._file, fcntl.LOCK_SH):
            asyncio.get_running_loop().call_later(_RETRY_S, self._lock)


def node_serves() -> bool:
    """True if an engine of this node has a client request."""
    try:
        with _open(".serving") as file:
            return not _try_lock(file, fcntl.LOCK_EX)
    except OSError:
        return False


async def until_idle(quiet_s: float, serves: Callable[[], bool] = node_serves) -> None:
    """Wait until no engine of this node has had a client request for `quiet_s`."""
    clock = asyncio.get_running_loop().time
    quiet_since = clock()
    while clock() - quiet_since < quiet_s:
        await asyncio.sleep(_POLL_S)
        if serves():
            quiet_since = clock()


@asynccontextmanager
async def _held(name: str, kind: int) -> AsyncIterator[None]:
    with contextlib.ExitStack() as stack:
        file = None
        with contextlib.suppress(OSError):
            file = stack.enter_context(_open(name))
        while file is not None and not _try_lock(file, kind):  # noqa: ASYNC110  # the kernel tells nobody
            await asyncio.sleep(_POLL_S)
        yield


def _try_lock(file: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(name: str) -> IO[bytes]:
    profile_cache.folder().mkdir(parents=True, exist_ok=True)
    return open(profile_cache.folder() / name, "ab")
