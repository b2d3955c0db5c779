"""Carries news between a router and the others: events for people, corrections for each other, once a second."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable

from router.events import Event
from router.exchange import Exchange
from router.metrics import Metrics
from router.online import Online

log = logging.getLogger("draftpick.router")

_EVERY_S = 1.0


class News:
    """Of one router."""

    def __init__(
        self,
        exchange: Exchange,
        unwritten: deque[Event],
        online: Callable[[], list[tuple[str, Online]]],
        metrics: Metrics,
    ) -> None:
        """`unwritten`: events for the file, the oldest first; `online`: what is learned of each policy, by its id.

        Events that cannot be written are counted in `metrics`.
        """
        self._exchange, self._unwritten, self._online, self._metrics = exchange, unwritten, online, metrics

    async def run(self) -> None:
        """Write events, and swap corrections with the other replicas, for ever."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await asyncio.to_thread(self._write)
                await self._swap_corrections()
            except (OSError, ValueError, KeyError) as error:
                log.warning("no news for the other routers: %s", error)

    def end(self) -> None:
        """Write what is left, and leave. Raises OSError."""
        self._write()
        self._exchange.leave()

    def _write(self) -> None:
        unwritten, events = self._unwritten, list[Event]()
        with contextlib.suppress(IndexError):  # another thread may write the last of them while the router stops
            while unwritten:
                events.append(unwritten.popleft())
        if events:
            try:
                self._exchange.write_events(events)
            except OSError as error:
                self._metrics.failures["events", type(error).__name__] += len(events)
                raise

    async def _swap_corrections(self) -> None:
        online = self._online()
        own = {policy: one.correction.own() for policy, one in online if one.corrects}
        if not own:
            return
        others = await asyncio.to_thread(self._exchange.swap, own)
        for policy, one in online:
            one.correction.take(others.get(policy, []))
            one.renew()
