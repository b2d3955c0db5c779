"""The requests that run at a mock engine now, and what a step that they share depends on."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from draftpick.engines.mock.decoding import Decoding
from draftpick.engines.profile.profile import GREEDY


class Batch:
    """Running requests."""

    def __init__(self) -> None:
        self._running: dict[int, Decoding] = {}

    @contextmanager
    def joined_by(self, decoding: Decoding) -> Iterator[None]:
        """Add a request for the duration of the block."""
        self._running[id(decoding)] = decoding
        try:
            yield
        finally:
            del self._running[id(decoding)]

    @property
    def mode(self) -> int:
        """The most expensive sampling mode: all rows pass one sampler."""
        return max((one.mode for one in self._running.values()), default=GREEDY)

    @property
    def sampled(self) -> int:
        """Number of requests that sample."""
        return sum(one.mode != GREEDY for one in self._running.values())

    def drafters(self) -> dict[str, int]:
        """Requests by the drafter of their last step, at a pool."""
        return dict(Counter(one.pool.chosen for one in self._running.values() if one.pool is not None))
