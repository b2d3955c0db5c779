"""Shadow replay: repeats some finished requests on all other engines, at low load and without a waiting client.

The result is every engine's time for these requests: labels for retraining, and measurements of engines with little
traffic. Until then a request is kept in memory only.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import numpy as np

from draftpick.engines.arms import drafter_of, engine_of
from draftpick.engines.http.client import Headers
from draftpick.engines.pool.forecast import Forecast as DrafterForecast
from draftpick.router.config.sections import ShadowConfig
from draftpick.router.online.events import Event
from draftpick.router.request.state import RequestState
from draftpick.router.types import Decision

_WAITING = 16
WORKERS = 4
"""Maximum concurrent shadow requests."""
_EAGER_SHARE, _EAGER_REQUESTS = 0.3, 200


class NullSink:
    """Discards an answer."""

    async def start(self, status: int, headers: Headers) -> None:
        return

    async def write(self, data: bytes) -> None:
        return

    async def send_complete(self, status: int, headers: Headers, body: bytes) -> None:
        return


class Shadow:
    """Samples finished requests (`enqueue`), and repeats them (`run`)."""

    def __init__(
        self,
        config: ShadowConfig,
        in_flight: Callable[[], int],
        eligible: Callable[[], list[str]],
        rng: np.random.Generator,
    ) -> None:
        self._config, self._in_flight, self._eligible, self._rng = config, in_flight, eligible, rng
        self._queue: asyncio.Queue[RequestState] = asyncio.Queue(_WAITING)
        self.requests_sent = self.boosted_requests = 0

    def enqueue(self, state: RequestState) -> None:
        """Queue a finished request, if sampled; never blocks."""
        request = state.client_request.request
        if not (state.client_request.explore and request.generates and request.state_id is None):
            return
        share = max(self._config.sample_rate, _EAGER_SHARE if self.boosted_requests else 0.0)
        self.boosted_requests = max(self.boosted_requests - 1, 0)
        if state.decision.reason != "policy" or self._rng.random() >= share or self._queue.full():
            return
        self._queue.put_nowait(state)

    def on_event(self, event: Event) -> None:
        """Sample more requests after a change."""
        if event.kind in ("arm_changed", "inputs_changed"):
            self.boost()

    def boost(self) -> None:
        """Sample the next requests at a higher rate: measurements are most valuable after a change."""
        self.boosted_requests = _EAGER_REQUESTS

    async def run(self, repeat: Callable[[RequestState], Awaitable[object]]) -> None:
        """Repeat queued requests on every other eligible engine, forever."""
        while True:
            state = await self._queue.get()
            while self._in_flight() >= self._config.max_in_flight:  # noqa: ASYNC110  # no event signals it
                await asyncio.sleep(0.05)
            decision = state.decision
            able = [arm for arm in self._eligible() if engine_of(arm) not in state.unable]
            others = other_engines(decision, able)
            self.requests_sent += len(others)
            await asyncio.gather(*(repeat(shadow_attempt(state, arm)) for arm in others))


def other_engines(decision: Decision, eligible: Sequence[str]) -> list[str]:
    """One eligible arm of each other engine that the policy knows: of a pool, the one predicted to be the fastest, as
    it scores all its drafters on every answer."""
    arms, predicted_s = list(decision.probabilities), decision.predicted_tpot_s
    found: dict[str, str] = {}
    for arm in sorted(eligible, key=lambda arm: predicted_s[arms.index(arm)] if predicted_s and arm in arms else 0.0):
        if arm in decision.probabilities:
            found.setdefault(engine_of(arm), arm)
    found.pop(engine_of(decision.arm), None)
    return [arm for arm in eligible if arm in found.values()]


def shadow_attempt(state: RequestState, arm: str) -> RequestState:
    """Copy a request for another arm."""
    original = state.decision
    probabilities = {name: float(name == arm) for name in original.probabilities}
    forecast = DrafterForecast() if drafter_of(arm) is not None else None
    decision = replace(
        original, arm=arm, propensity=1.0, probabilities=probabilities, reason="shadow", forecast=forecast
    )
    if original.load is not None and original.predicted_tpot_s is not None:  # shadows run at low load
        pairs = zip(original.predicted_tpot_s, original.load.slowdown, strict=True)
        decision = replace(decision, predicted_tpot_s=[tpot_s / stretch for tpot_s, stretch in pairs], load=None)
    incoming = replace(state.client_request, deadline=None, count_tokens=None, accepted=time.perf_counter())
    return RequestState(incoming, context=state.context, decision=decision, prefix=state.prefix)
