"""Shadow replay: some finished requests are asked again of all other engines, when there is room, and nobody waits.

So it is known of them what every engine would have taken: labels for retraining, and news of engines that get little
traffic. What was asked is kept in memory until then, and nowhere else.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np

from engines.client import Headers
from router.attempt import Attempt
from router.sections import ShadowConfig

_WAITING = 16
WORKERS = 4
"""How many run at once."""
_EAGER_SHARE, _EAGER_REQUESTS = 0.3, 200


class Discarded:
    """A reply that goes nowhere."""

    async def start(self, status: int, headers: Headers) -> None:
        return

    async def write(self, data: bytes) -> None:
        return

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        return


class Shadow:
    """Takes finished attempts (`offer`), and repeats a share of them with `again` (`run`)."""

    def __init__(
        self,
        config: ShadowConfig,
        in_flight: Callable[[], int],
        eligible: Callable[[], list[str]],
        again: Callable[[Attempt], Awaitable[object]],
        rng: np.random.Generator,
    ) -> None:
        self._config, self._in_flight, self._eligible, self._again, self._rng = config, in_flight, eligible, again, rng
        self._waiting: asyncio.Queue[Attempt] = asyncio.Queue(_WAITING)
        self.asked = self.eager = 0

    def offer(self, attempt: Attempt) -> None:
        """Take a finished request, perhaps; never waits."""
        share = max(self._config.share, _EAGER_SHARE if self.eager else 0.0)
        self.eager = max(self.eager - 1, 0)
        if attempt.decision.reason != "policy" or self._rng.random() >= share or self._waiting.full():
            return
        self._waiting.put_nowait(attempt)

    def hurry(self) -> None:
        """Ask more of the next requests again: something has changed, and news is worth most then."""
        self.eager = _EAGER_REQUESTS

    async def run(self) -> None:
        """Ask what was taken of every other engine that is eligible, for ever."""
        while True:
            done = await self._waiting.get()
            while self._in_flight() >= self._config.max_in_flight:  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.05)
            others = [a for a in self._eligible() if a != done.decision.arm and a in done.decision.probabilities]
            self.asked += len(others)
            await asyncio.gather(*(self._again(shadow_of(done, arm)) for arm in others))


def shadow_of(done: Attempt, arm: str) -> Attempt:
    """The same request as an attempt on another arm."""
    probabilities = {name: float(name == arm) for name in done.decision.probabilities}
    made = done.decision
    decision = replace(made, arm=arm, propensity=1.0, probabilities=probabilities, reason="shadow")
    if made.load is not None and made.predicted_tpot_s is not None:  # shadows are asked when there is none
        alone = [tpot_s / stretch for tpot_s, stretch in zip(made.predicted_tpot_s, made.load.stretch, strict=True)]
        decision = replace(decision, predicted_tpot_s=alone, load=None)
    incoming = replace(done.incoming, deadline=None, charge=None)
    return Attempt(incoming, done.context, decision)
