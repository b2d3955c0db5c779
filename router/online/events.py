"""Events of a router, for people and retraining jobs, and their form on disk."""

import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a router, for a person to read. `time`: seconds since the epoch.

    `kind`: `arm_changed` (`arm`; figures: `costs` or `drafts`, how far, as a logarithm), `inputs_changed`,
    `policy_loses`, `policy_tried_again`, `policy_taken`, `policy_refused`, `arm_quarantined`, `arm_readmitted`.
    """

    time: float
    kind: str
    text: str
    arm: str | None = None
    policy: str | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


EventHandler = Callable[[Event], None]
_KEPT = 200


class EventLog:
    """The last events (`recent`), those that are not on disk yet (`unwritten`), and who is called with each."""

    def __init__(self) -> None:
        self.recent: deque[Event] = deque(maxlen=_KEPT)
        self.unwritten: deque[Event] = deque(maxlen=_KEPT)
        self._subscribers: list[EventHandler] = []

    def subscribe(self, subscriber: EventHandler) -> None:
        """Call `subscriber` with every event from now on."""
        self._subscribers.append(subscriber)

    def emit(self, event: Event) -> None:
        """Keep an event, and pass it on."""
        for subscriber in self._subscribers:
            subscriber(event)
        self.recent.append(event)
        self.unwritten.append(event)


EVENTS = "events.jsonl"


def encode_events(events: Sequence[Event]) -> bytes:
    """Events as lines of `events.jsonl`."""
    return b"".join(json.dumps(asdict(event)).encode() + b"\n" for event in events)


def decode_events(data: bytes, since: float = 0.0) -> list[Event]:
    """Events in the lines of `events.jsonl` that are later than `since`; damaged and torn lines are passed over."""
    found = (_event(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n"))
    return [event for event in found if event is not None and event.time > since]


def _event(line: bytes) -> Event | None:
    """The event in a line; None where a replica ended in the middle of it, or one of another version wrote it."""
    try:
        event = Event(**json.loads(line))
        return event if math.isfinite(event.time) else None
    except (ValueError, TypeError):
        return None
