"""Synchronises a router with the others once per second: writes events, and exchanges corrections."""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable

from draftpick.router.online.events import Event
from draftpick.router.online.online_learner import OnlineLearner
from draftpick.router.online.peer_store import PeerStore

_EVERY_S = 1.0


class PeerSync:
    def __init__(
        self,
        exchange: PeerStore,
        unwritten: deque[Event],
        online: Callable[[], list[tuple[str, OnlineLearner]]],
        failures: Counter[tuple[str, str]],
    ) -> None:
        """`unwritten`: events for the file, oldest first; `online`: learners by policy id.

        Events that cannot be written are counted in `failures`, by part of the router and error.
        """
        self._store, self._unwritten, self._online, self._failures = exchange, unwritten, online, failures

    async def run(self) -> None:
        """Write events and exchange corrections, forever. Raises OSError if the disk fails."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await asyncio.to_thread(self._write_events)
            await self._sync_corrections()

    def close(self) -> None:
        """Write the remaining events and withdraw the corrections. Raises OSError."""
        self._write_events()
        self._store.withdraw()

    def _write_events(self) -> None:
        unwritten, events = self._unwritten, list[Event]()
        with contextlib.suppress(IndexError):  # another thread may write the last of them during shutdown
            while unwritten:
                events.append(unwritten.popleft())
        if events:
            try:
                self._store.write_events(events)
            except OSError as error:
                self._failures["events", type(error).__name__] += len(events)
                raise

    async def _sync_corrections(self) -> None:
        online = self._online()
        own = {policy: one.correction.local_state() for policy, one in online if one.corrects_times}
        if not own:
            return
        others = await asyncio.to_thread(self._store.sync, own)
        for policy, one in online:
            one.correction.merge(others.get(policy, []))
            one.refresh()
