"""Background tasks outlive their errors: each is logged once, counted, and the task goes on."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

log = logging.getLogger("draftpick.router")

_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.5, 30.0
_LONG_S = 60.0
"""A task that ran this long before an error begins again without delay."""


class Supervisor:
    """`failures`: counts of errors, by part of the router and type of error."""

    def __init__(self, failures: Counter[tuple[str, str]]) -> None:
        self._failures = failures

    async def run(self, part: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work`, which usually never returns; after an error begin again, after a pause that doubles each time."""
        pause_s = _FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            if await self.attempt(part, work):
                return
            pause_s = _FIRST_PAUSE_S if time.monotonic() - began > _LONG_S else min(2 * pause_s, _MAX_PAUSE_S)
            await asyncio.sleep(pause_s)

    async def attempt(self, part: str, work: Callable[..., Awaitable[None]], *arguments: Any) -> bool:
        """Run `work` once with these arguments; return whether it had no error."""
        try:
            await work(*arguments)
        except Exception as error:  # files, engines, peers and third-party policies: none may end a task
            self.report(part, error)
            return False
        return True

    def report(self, part: str, error: Exception) -> None:
        """Count an error, and log the first of its type."""
        kind = part, type(error).__name__
        self._failures[kind] += 1
        if self._failures[kind] == 1:
            log.error("%s failed; further errors of this type are only counted", part, exc_info=error)
