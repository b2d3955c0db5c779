"""Watches what each arm's drafts are worth: an arm whose drafter is silently lost is taken out, and probed back."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal

from router.events import Event
from router.sections import QuarantineConfig

_FEWEST_TOKENS = 8
_HISTORY_WEIGHT = 0.005
_FRESH = 50
_MARGIN = 0.05
"""How far the share of collapsed answers may be above its estimate."""
_FEWEST_SEEN = 40
_LEAST_USUAL, _MOST_USUAL = 0.3, 0.98
_LEAST_GAIN = 0.05
_WELL = 2


@dataclass(slots=True)
class _History:
    """Of one arm on one kind of requests: its usual gain, and how usual a collapsed answer is.

    `fresh`: the last answers, which are no part yet of the history that they are judged by.
    """

    fresh: deque[tuple[float, bool]] = field(default_factory=deque)
    seen: int = 0
    gain: float = 0.0
    usual: float = 0.5

    @property
    def tells(self) -> bool:
        """Whether there is enough of it to judge by."""
        return self.seen >= _FEWEST_SEEN and self.gain >= _LEAST_GAIN

    def saw(self, gain: float, collapsed: bool) -> None:
        self.fresh.append((gain, collapsed))
        if len(self.fresh) <= _FRESH and self.seen >= _FEWEST_SEEN:
            return
        gain, collapsed = self.fresh.popleft()
        self.seen += 1
        weight = max(_HISTORY_WEIGHT, 1 / self.seen)
        self.gain += weight * (gain - self.gain)
        self.usual += weight * (collapsed - self.usual)


@dataclass(slots=True)
class _Arm:
    """One arm: its histories by kind of requests, since an arm may be good at some and bad at others."""

    quarantine_s: float
    histories: dict[int, _History] = field(default_factory=dict)
    doubt: float = 0.0
    run: int = 0
    well: int = 0
    until: float | None = None


_gain = attrgetter("gain")


class AcceptanceWatch:
    """Sequential test by arm. `doubt` sums log(1 / share of collapsed answers in the past) over a run of them."""

    def __init__(
        self,
        arms: Sequence[str],
        config: QuarantineConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[str, str, str], None] = lambda kind, text, arm: None,
    ) -> None:
        """`tell`: called with the kind of an event, what happened, and the arm."""
        self._config, self._clock, self._tell = config or QuarantineConfig(), clock, tell
        self._arms = {arm: _Arm(self._config.quarantine_s) for arm in arms}
        self.quarantined = 0

    def admits(self, arm: str, in_flight: int) -> bool:
        """Whether an arm may take one more request: none in quarantine, two at once while it is probed."""
        watched = self._arms[arm]
        return watched.until is None or (self._clock() >= watched.until and in_flight < 2)

    def state(self) -> dict[str, Literal["ok", "quarantined", "probed"]]:
        """State by arm."""
        return {arm: self._state(watched) for arm, watched in self._arms.items()}

    def _state(self, watched: _Arm) -> Literal["ok", "quarantined", "probed"]:
        if watched.until is None:
            return "ok"
        return "probed" if self._clock() >= watched.until else "quarantined"

    def on_event(self, event: Event) -> None:
        """Forget what is usual where it is so no more, or where another policy tells other clusters apart."""
        if event.kind in ("inputs_changed", "policy_taken"):
            self.forget()

    def forget(self) -> None:
        """Other kinds of requests come than before: what is usual is learned anew. Quarantines stay."""
        for watched in self._arms.values():
            watched.histories.clear()
            watched.doubt = 0.0

    def saw(
        self,
        arm: str,
        acceptance_length: float | None,
        output_tokens: int | None,
        kind: int = 0,
        *,
        shadow: bool = False,
    ) -> None:
        """Take one finished answer into account. Those too short to tell, or without a figure, are passed over.

        `kind`: of the request, as the policy tells kinds apart; that other kinds come is no fault of an arm. `shadow`:
        no client waited for it, so that it may probe an arm in quarantine at any time.
        """
        if not self._config.enabled or acceptance_length is None or (output_tokens or 0) < _FEWEST_TOKENS:
            return
        watched, gain = self._arms[arm], acceptance_length - 1.0
        history = watched.histories.setdefault(kind, _History())
        collapsed = gain < self._config.collapse * history.gain
        if watched.until is not None:
            known = history if history.tells else max(watched.histories.values(), key=_gain)
            if history.tells or gain >= self._config.collapse * known.gain:
                self._probed(arm, watched, known, collapsed and history.tells, shadow)
            return
        if history.tells:
            usual = min(max(history.usual + _MARGIN, _LEAST_USUAL), _MOST_USUAL)
            watched.doubt = watched.doubt - math.log(usual) if collapsed else 0.0
            if watched.doubt > -math.log(self._config.chance):
                self._quarantine(arm, watched, history)
                return
        history.saw(gain, collapsed)

    def _probed(self, arm: str, watched: _Arm, history: _History, collapsed: bool, shadow: bool) -> None:
        if self._clock() < (watched.until or 0.0):
            # A request of a client began before the quarantine; shadows go on, and two good ones in a row end it.
            watched.well = watched.well + 1 if shadow and not collapsed else 0
            if watched.well < _WELL:
                return
        watched.run = watched.run + 1 if collapsed else 0
        if not collapsed:
            watched.until, watched.doubt, watched.quarantine_s = None, 0.0, self._config.quarantine_s
            watched.well = 0
            text = f"engine {arm}: its drafts are accepted again, it takes requests"
            self._tell("arm_readmitted", text, arm)
        elif watched.run >= self._config.probes:
            self._quarantine(arm, watched, history)

    def _quarantine(self, arm: str, watched: _Arm, history: _History) -> None:
        watched.until, watched.run = self._clock() + watched.quarantine_s, 0
        for known in watched.histories.values():
            known.fresh.clear()
        lost = f"its drafts are hardly accepted any more (usual gain {history.gain:.2f})"
        text = f"engine {arm}: {lost}; no requests for {watched.quarantine_s:g} s"
        self._tell("arm_quarantined", text, arm)
        watched.quarantine_s = min(2 * watched.quarantine_s, self._config.max_quarantine_s)
        self.quarantined += 1
