"""An engine's own log of its last decoding steps, at `GET /draftpick/steps`: what a step of n drafted tokens takes."""

from collections import deque
from typing import Any, NamedTuple

from pydantic_core import from_json

PATH = "/draftpick/steps"
_KEPT = 512


class Step(NamedTuple):
    """One decoding step without a prefill: running requests, tokens drafted for all of them, and seconds."""

    running: int
    drafted: int
    step_s: float


class StepLog:
    """The last steps. `count`: number of all steps so far."""

    def __init__(self) -> None:
        self.count = 0
        self._steps: deque[Step] = deque(maxlen=_KEPT)

    def add(self, running: int, drafted: int, step_s: float) -> None:
        """Add one step."""
        self.count += 1
        self._steps.append(Step(running, drafted, step_s))

    def as_json(self) -> dict[str, Any]:
        return {"count": self.count, "steps": [list(step) for step in self._steps]}


def parse_steps(data: bytes, since: int = 0) -> tuple[int, list[Step]]:
    """Return the count of a log in JSON and its steps after the first `since`; (0, none) for anything else."""
    try:
        fields = from_json(data)
        count, steps = int(fields["count"]), [Step(int(n), int(d), float(s)) for n, d, s in fields["steps"]]
    except (ValueError, TypeError, KeyError, OverflowError):
        return 0, []
    return count, steps[max(0, len(steps) - max(0, count - since)) :]
