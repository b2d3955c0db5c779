"""The queue of finished attempts: the request path appends to it, and observers get its content in batches."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextvars import Context

from prometheus_client.metrics_core import Metric

from draftpick.router.types import Attempt, AttemptObserver

log = logging.getLogger("draftpick.router")

MAX_QUEUED = 4096
_LOST = "attempts", "lost"
_EVERY_S = 0.05
_SLICE = 16
"""Attempts between two turns of the event loop: bounds the delay of other requests to about a millisecond."""


class AttemptQueue:
    """A bounded queue of attempts, in the order of their ends.

    A timer of the event loop passes its content on, so there is no task that could end. Readers of what observers keep
    call `drain` first.
    """

    def __init__(
        self,
        observers: Mapping[str, AttemptObserver | None],
        failures: Counter[tuple[str, str]],
        prepare: Callable[[Attempt], Attempt] = lambda attempt: attempt,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        """`observers`: by part of the router, None if it is off. `prepare`: completes an attempt before they get it.

        Errors of either are logged and counted in `failures`, by part and error, and so are attempts that find the
        queue full: no observer gets them.
        """
        self._observers = {part: one.on_attempt_end for part, one in observers.items() if one is not None}
        self._failures, self._prepare = failures, prepare
        self._max_queued, self._attempts = max_queued, deque[Attempt]()
        self._timer: asyncio.Handle | None = None

    def __len__(self) -> int:
        return len(self._attempts)

    def put(self, attempt: Attempt) -> None:
        """Append an attempt; never blocks."""
        if len(self._attempts) >= self._max_queued:
            if not self._failures[_LOST]:
                log.error("the queue of finished attempts is full: some are lost to metrics, records and learning")
            self._failures[_LOST] += 1
            return
        self._attempts.append(attempt)
        if self._timer is None:
            # Not in the context of the request, whose id the log would show for others.
            self._timer = asyncio.get_running_loop().call_later(_EVERY_S, self._consume, context=Context())

    def drain(self) -> None:
        """Pass everything queued to the observers now."""
        while self._attempts:
            self._observe(self._attempts.popleft())

    def collect(self) -> Iterator[Metric]:
        """A collector of no metrics: it comes before those of the observers, and drains the queue."""
        self.drain()
        return iter(())

    def close(self) -> None:
        """Drain, and stop the timer."""
        self.drain()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _consume(self) -> None:
        """Pass on a slice; the rest has to wait for the next turn of the event loop."""
        for _ in range(min(_SLICE, len(self._attempts))):
            self._observe(self._attempts.popleft())
        self._timer = asyncio.get_running_loop().call_soon(self._consume) if self._attempts else None

    def _observe(self, attempt: Attempt) -> None:
        try:
            attempt = self._prepare(attempt)
        except Exception as error:  # third-party policies may raise anything; the answer has been sent
            self._failed("learning", attempt, error)
        for part, observe in self._observers.items():
            try:
                observe(attempt)
            except Exception as error:  # one observer's fault costs the others nothing, and is counted
                self._failed(part, attempt, error)

    def _failed(self, part: str, attempt: Attempt, error: Exception) -> None:
        about = {"draftpick_request_id": attempt.request_id}
        log.error("%s failed on a finished attempt", part, exc_info=error, extra=about)
        self._failures[part, type(error).__name__] += 1
