"""Events of a router, for people and retraining jobs, and their form on disk."""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from pydantic import ConfigDict, FiniteFloat, TypeAdapter, ValidationError


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a router, for operators. `time`: seconds since the epoch.

    `kind`: `arm_changed` (`arm`; figures: `costs` or `drafts`, log change), `inputs_changed`,
    `safe_mode_entered` (`arm`; figures: `lost`, `at_least`, shares of time), `safe_mode_left`,
    `policy_activated`, `policy_rejected`, `arm_quarantined`, `arm_readmitted`.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    time: FiniteFloat
    kind: str
    text: str
    arm: str | None = None
    policy: str | None = None
    figures: Mapping[str, FiniteFloat] = field(default_factory=dict)


EventHandler = Callable[[Event], None]
_KEPT = 200


class EventLog:
    """Recent events (`recent`), those not yet on disk (`unwritten`), and subscribers."""

    def __init__(self) -> None:
        self.recent: deque[Event] = deque(maxlen=_KEPT)
        self.unwritten: deque[Event] = deque(maxlen=_KEPT)
        self._subscribers: list[EventHandler] = []

    def subscribe(self, *subscribers: EventHandler) -> None:
        """Call `subscribers` with every later event."""
        self._subscribers.extend(subscribers)

    def emit(self, event: Event) -> None:
        """Store an event and pass it to the subscribers."""
        for subscriber in self._subscribers:
            subscriber(event)
        self.recent.append(event)
        self.unwritten.append(event)


def bounded_time(time_s: float) -> float:
    """A time of another clock, in seconds since the epoch: one in the future becomes now.

    Else nothing would count as later, until the clock has come there.
    """
    return min(time_s, time.time())


EVENTS = "events.jsonl"
FORMER_KINDS = {
    "policy_loses": "safe_mode_entered",
    "policy_tried_again": "safe_mode_left",
    "policy_taken": "policy_activated",
    "policy_refused": "policy_rejected",
    "candidate_refused": "candidate_rejected",
}
"""Kinds of events as earlier versions wrote them, each with the one of today."""


def encode_events(events: Sequence[Event]) -> bytes:
    """Encode events as lines of `events.jsonl`."""
    return b"".join(json.dumps(asdict(event)).encode() + b"\n" for event in events)


def decode_events(data: bytes, since: float = 0.0) -> list[Event]:
    """Decode lines of `events.jsonl` later than `since`; damaged and incomplete lines are skipped."""
    found = (_event(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n"))
    return [event for event in found if event is not None and event.time > since]


def _event(line: bytes) -> Event | None:
    """Parse one line; None if it is incomplete or of another version."""
    try:
        event = _LINE.validate_json(line)
    except ValidationError:
        return None
    return replace(event, kind=FORMER_KINDS.get(event.kind, event.kind), time=bounded_time(event.time))


_LINE = TypeAdapter(Event)
