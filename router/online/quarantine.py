"""Monitors acceptance by arm: an arm with a silently lost drafter is quarantined, then probed and readmitted."""

import copy
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import ClassVar, Literal

from draftpick.router.config.sections import QuarantineConfig
from draftpick.router.online.events import Event
from draftpick.router.online.key_shares import MAX_EVIDENCE, KeyedEvidence, KeyShares

_MIN_TOKENS = 8
_HISTORY_WEIGHT = 0.005
_RECENT_ANSWERS = 50
_MARGIN = 0.05
"""Upper margin on the estimated share of collapsed answers."""
_MIN_SEEN = 40
_MIN_COLLAPSE_RATE, _MAX_COLLAPSE_RATE = 0.3, 0.98
_MIN_GAIN = 0.05
_HEALTHY_PROBES = 2
MAX_ADAPTERS = 256
"""Adapters of the target of which something is kept: those that answered last."""
_OWN_WEIGHT, _OWN_ANSWERS, _MAX_OWN = 0.02, 10, 4096
"""Of an API key's own gain: weight of an answer, answers from which it is known, and the most that are kept."""


@dataclass(slots=True)
class _History:
    """History of one arm on one cluster: its baseline gain, and the share of collapsed answers.

    `recent`: the latest answers, which are not yet part of the history.
    """

    recent: deque[tuple[float, bool, float]] = field(default_factory=deque)
    count: int = 0
    gain: float = 0.0
    collapse_rate: float = 0.5

    @property
    def is_sufficient(self) -> bool:
        """True if the history suffices for a test."""
        return self.count >= _MIN_SEEN and self.gain >= _MIN_GAIN

    def update(self, gain: float, collapsed: bool, weight: float) -> None:
        """`weight`: of the answer's API key."""
        self.recent.append((gain, collapsed, weight))
        if len(self.recent) <= _RECENT_ANSWERS and self.count >= _MIN_SEEN:
            return
        gain, collapsed, weight = self.recent.popleft()
        self.count += 1
        weight *= max(_HISTORY_WEIGHT, 1 / self.count)
        self.gain += weight * (gain - self.gain)
        self.collapse_rate += weight * (collapsed - self.collapse_rate)


@dataclass(slots=True)
class _OwnGain:
    """Moving mean of the gain in an API key's own answers of one cluster."""

    count: int = 0
    mean: float = 0.0

    def update(self, gain: float) -> None:
        self.count += 1
        self.mean += max(_OWN_WEIGHT, 1 / self.count) * (gain - self.mean)


@dataclass(slots=True)
class _ArmState:
    """One arm: its histories by cluster, since acceptance varies between clusters.

    `own_gains`: by cluster and key, since what others' drafts gain is not to be expected of all.
    """

    quarantine_s: float
    keys: KeyShares
    own_gains: dict[tuple[int, str], _OwnGain] = field(default_factory=dict)
    histories: dict[int, _History] = field(default_factory=dict)
    evidence: KeyedEvidence = field(default_factory=KeyedEvidence)
    collapsed_run: KeyedEvidence = field(default_factory=KeyedEvidence)
    healthy_run: int = 0
    quarantined_until: float | None = None


_gain = attrgetter("gain")


class AcceptanceMonitor:
    """A `draftpick.router.load.health_signal.HealthSignal`: a sequential test by arm.

    `evidence` sums log(1 / share of collapsed answers in the past) over a run of them. What one API key asks decides no
    test alone while others are answered, too.

    Each adapter of the target has a monitor of its own, which begins with what is known of the target's drafts.
    """

    reason: ClassVar[str] = "quarantined"
    text: ClassVar[str] = "has lost its drafts and is quarantined"
    fallback: ClassVar[str | None] = None

    def __init__(
        self,
        arms: Sequence[str],
        config: QuarantineConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_event: Callable[[str, str, str], None] = lambda kind, text, arm: None,
    ) -> None:
        """`on_event`: called with the event's kind, text, and arm."""
        self._config, self._clock, self._on_event = config or QuarantineConfig(), clock, on_event
        self._by_adapter: OrderedDict[str, AcceptanceMonitor] = OrderedDict()
        self._arms = {arm: _ArmState(self._config.quarantine_s, KeyShares(clock)) for arm in arms}
        self.quarantined = 0
        self.suspects: set[str] = set()

    def of(self, adapter: str) -> "AcceptanceMonitor":
        """Return the monitor of an adapter; without answers of it, or without adapter (empty), that of the target."""
        return self._by_adapter.get(adapter, self)

    def admits(self, arm: str, in_flight: int) -> bool:
        """True if an arm may take one more request: none in quarantine, two concurrent ones while probed."""
        arm_state = self._arms[arm]
        return arm_state.quarantined_until is None or (self._clock() >= arm_state.quarantined_until and in_flight < 2)

    def state(self) -> dict[str, Literal["ok", "quarantined", "probed"]]:
        return {arm: self._state(watched) for arm, watched in self._arms.items()}

    def _state(self, arm_state: _ArmState) -> Literal["ok", "quarantined", "probed"]:
        if arm_state.quarantined_until is None:
            return "ok"
        return "probed" if self._clock() >= arm_state.quarantined_until else "quarantined"

    def on_event(self, event: Event) -> None:
        """Reset outdated histories: after a change of an arm, or of the policy, which defines the clusters."""
        if event.kind in ("inputs_changed", "policy_activated"):
            self.reset_histories()

    def reset_histories(self) -> None:
        """Reset all baselines after a change of traffic. Quarantines stay."""
        for arm_state in self._arms.values():
            arm_state.histories.clear()
            arm_state.evidence.clear()
        for monitor in self._by_adapter.values():
            monitor.reset_histories()

    def observe(
        self,
        arm: str,
        acceptance_length: float | None,
        output_tokens: int | None,
        cluster: int = 0,
        *,
        shadow: bool = False,
        key: str = "",
        adapter: str = "",
    ) -> None:
        """Learn from one finished answer. Answers too short, or without an acceptance length, are skipped.

        `cluster`: of the request, by the policy; a change of clusters is no fault of an arm. `shadow`: no client waits
        for it, so it may probe a quarantined arm at any time. `key`: name of its API key. `adapter`: that answered.
        """
        if not self._config.enabled or acceptance_length is None or (output_tokens or 0) < _MIN_TOKENS:
            return
        if adapter:
            self._monitor_of(adapter).observe(arm, acceptance_length, output_tokens, cluster, shadow=shadow, key=key)
            return
        if arm not in self._arms:  # a drafter that an engine has, and its configuration lacks
            return
        arm_state, gain = self._arms[arm], acceptance_length - 1.0
        history, weight = arm_state.histories.setdefault(cluster, _History()), arm_state.keys.observe(key)
        collapsed = gain < self._config.collapse_ratio * _expected_gain(arm_state, history.gain, gain, cluster, key)
        if arm_state.quarantined_until is not None:
            known = history if history.is_sufficient else max(arm_state.histories.values(), key=_gain)
            if history.is_sufficient or gain >= self._config.collapse_ratio * known.gain:
                self._observe_probe(arm, arm_state, known, collapsed and history.is_sufficient, shadow, key)
            return
        if history.is_sufficient:
            collapse_rate = min(max(history.collapse_rate + _MARGIN, _MIN_COLLAPSE_RATE), _MAX_COLLAPSE_RATE)
            if collapsed:
                arm_state.evidence.add(key, -math.log(collapse_rate))
            else:
                arm_state.evidence.clear()
            needed, several = -math.log(self._config.false_alarm_probability), arm_state.keys.several
            if arm_state.evidence.exceeds(needed, several):
                self._quarantine(arm, arm_state, history)
                return
            if several and arm_state.evidence.by_key.get(key, 0.0) > MAX_EVIDENCE * needed:
                return  # what is no evidence any more does not become usual either
        history.update(gain, collapsed, weight)

    def _monitor_of(self, adapter: str) -> "AcceptanceMonitor":
        """The monitor of an adapter; a new one begins with a copy of the target's histories, quarantines included."""
        if (found := self._by_adapter.get(adapter)) is None:

            def on_event(kind: str, text: str, arm: str) -> None:
                self.quarantined += kind == "arm_quarantined"
                self._on_event(kind, f"adapter {adapter}: {text}", arm)

            found = self._by_adapter[adapter] = AcceptanceMonitor([], self._config, self._clock, on_event)
            found._arms, found.suspects = copy.deepcopy(self._arms), set(self.suspects)
            if len(self._by_adapter) > MAX_ADAPTERS:
                self._by_adapter.popitem(last=False)
        self._by_adapter.move_to_end(adapter)
        return found

    def _observe_probe(
        self, arm: str, arm_state: _ArmState, history: _History, collapsed: bool, shadow: bool, key: str
    ) -> None:
        if self._clock() < (arm_state.quarantined_until or 0.0):
            # Client requests here began before the quarantine; shadows continue, and two good ones in a row end it.
            arm_state.healthy_run = arm_state.healthy_run + 1 if shadow and not collapsed else 0
            if arm_state.healthy_run < _HEALTHY_PROBES:
                return
        if not collapsed:
            self.suspects.discard(arm)
            arm_state.quarantined_until, arm_state.quarantine_s = None, self._config.quarantine_s
            arm_state.evidence.clear()
            arm_state.collapsed_run.clear()
            arm_state.healthy_run = 0
            text = f"engine {arm}: its drafts are accepted again; readmitted"
            self._on_event("arm_readmitted", text, arm)
            return
        arm_state.collapsed_run.add(key, 1.0)
        if arm_state.collapsed_run.exceeds(self._config.probes - 0.5, arm_state.keys.several):
            self._quarantine(arm, arm_state, history)

    def _quarantine(self, arm: str, arm_state: _ArmState, history: _History) -> None:
        arm_state.quarantined_until = self._clock() + arm_state.quarantine_s
        arm_state.collapsed_run.clear()
        for known in arm_state.histories.values():
            known.recent.clear()
        lost = f"its drafts are hardly accepted any more (baseline gain {history.gain:.2f})"
        text = f"engine {arm}: {lost}; no requests for {arm_state.quarantine_s:g} s"
        self._on_event("arm_quarantined", text, arm)
        arm_state.quarantine_s = min(2 * arm_state.quarantine_s, self._config.max_quarantine_s)
        self.suspects.add(arm)
        self.quarantined += 1


def _expected_gain(arm_state: _ArmState, gain_of_all: float, gain: float, cluster: int, key: str) -> float:
    """The usual gain for an answer: of all answers, or of its key's own if that is less. Adds the answer."""
    if not key:
        return gain_of_all
    if len(arm_state.own_gains) > _MAX_OWN:
        arm_state.own_gains.clear()
    own = arm_state.own_gains.setdefault((cluster, key), _OwnGain())
    usual = own.mean if own.count >= _OWN_ANSWERS else gain_of_all
    own.update(gain)
    return min(usual, gain_of_all)
