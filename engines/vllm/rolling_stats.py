"""Statistics of an engine's last seconds: sums, updated in a microsecond per decoding step, and their means."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

_BUCKET_S = 1.0


@dataclass(slots=True)
class _Bucket:
    """Sums of one second that starts at `began_s`. `tokens`: all tokens; `decoded` of them in `turns`, one request in
    one step each; `steps` took `step_s` in total.
    """

    began_s: float
    tokens: int = 0
    decoded: int = 0
    turns: int = 0
    steps: int = 0
    step_s: float = 0.0


class RecentSteps:
    """Means of the last `window_s` seconds, with a resolution of one second."""

    def __init__(self, window_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s, self._clock = window_s, clock
        self._buckets: deque[_Bucket] = deque()

    def add(self, tokens: int, decoded: int, turns: int, step_s: float | None) -> None:
        """Add the tokens of one step; `step_s`: its duration, None if not representative."""
        now = self._clock()
        if not self._buckets or now - self._buckets[-1].began_s >= _BUCKET_S:
            self._forget(now)
            self._buckets.append(_Bucket(now))
        bucket = self._buckets[-1]
        bucket.tokens += tokens
        bucket.decoded += decoded
        bucket.turns += turns
        if step_s is not None:
            bucket.steps += 1
            bucket.step_s += step_s

    def tokens_per_s(self) -> float:
        """Tokens per second over all requests, from the first token if that is within the window."""
        now = self._clock()
        self._forget(now)
        if not self._buckets:
            return 0.0
        return sum(bucket.tokens for bucket in self._buckets) / max(_BUCKET_S, now - self._buckets[0].began_s)

    def tokens_per_request_step(self) -> float | None:
        """Mean tokens of a request per decoding step: the acceptance length."""
        return self._mean("decoded", "turns")

    def step_s(self) -> float | None:
        """Mean seconds of a decoding step."""
        return self._mean("step_s", "steps")

    def _mean(self, sums: str, counts: str) -> float | None:
        self._forget(self._clock())
        number = sum(getattr(bucket, counts) for bucket in self._buckets)
        return sum(getattr(bucket, sums) for bucket in self._buckets) / number if number else None

    def _forget(self, now: float) -> None:
        while self._buckets and self._buckets[0].began_s <= now - self._window_s:
            self._buckets.popleft()
