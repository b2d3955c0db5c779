"""State exchanged by router replicas on a shared disk, without a lock: events, and corrections."""

import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from draftpick.engines.atomic_write import atomic_write
from draftpick.router.online.events import EVENTS, Event, encode_events

_FRESH_S = 60.0
_Sum = Annotated[float, Field(ge=-1e9, le=1e9)]
"""A sum over at most a window of answers, bounded so that none makes corrections infinite."""


class PeerStore:
    """A folder shared by all replicas of a router. All methods may raise OSError; only updates are lost then."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = folder / f"corrections-{platform.node()}-{os.getpid()}-{id(self):x}.json"

    def write_events(self, events: Sequence[Event]) -> None:
        """Append events to `events.jsonl`, one object per line; one write, so that lines of replicas do not mix."""
        self._folder.mkdir(parents=True, exist_ok=True)
        data = encode_events(events)
        handle = os.open(self._folder / EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            if os.write(handle, data) < len(data):
                raise OSError(f"incomplete write to {self._folder}: not all events are on disk")
        finally:
            os.close(handle)

    def sync(self, local_state: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Write the own corrections by policy id; return the others' of the last minute."""
        self._folder.mkdir(parents=True, exist_ok=True)
        atomic_write(self._own, json.dumps(local_state))
        found: dict[str, list[dict[str, Any]]] = {policy: [] for policy in local_state}
        for path in self._folder.glob("corrections-*.json"):
            if path != self._own:
                for policy, sums in _read_peer_state(path).items():
                    if policy in found:
                        found[policy].append(sums.model_dump(exclude_none=True))
        return found

    def withdraw(self) -> None:
        """Remove the own corrections."""
        self._own.unlink(missing_ok=True)


class PeerCorrections(BaseModel):
    """The sums of `ResidualCorrection.local_state`, as another router has written them."""

    weights: list[list[_Sum]]
    sums: list[list[_Sum]]
    squares: list[list[_Sum]] | None = None


_FILE = TypeAdapter(dict[str, PeerCorrections])


def _read_peer_state(path: Path) -> dict[str, PeerCorrections]:
    """Another router's state by policy id; empty if it is stale (and removed), missing, or damaged.

    A time in the future is stale, too: it would never become old.
    """
    try:
        if abs(time.time() - path.stat().st_mtime) > _FRESH_S:
            path.unlink(missing_ok=True)
            return {}
        return _FILE.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return {}
