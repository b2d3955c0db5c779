"""What an engine measures of the requests that it is to report, from their arrival until they are reported."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(slots=True)
class _Measured:
    sequences: int = 0
    usage: dict[str, int] = field(default_factory=lambda: {"prompt_tokens": 0, "completion_tokens": 0})
    metrics: dict[str, Any] = field(default_factory=dict)


class Measurements:
    """Measurements by lease. Those of other requests are dropped at once, so that nothing grows."""

    def __init__(self) -> None:
        self._expected: dict[str, _Measured] = {}

    def __len__(self) -> int:
        return len(self._expected)

    def expect(self, lease: str) -> None:
        """Keep what is measured of a request with this id, from now until `take`."""
        self._expected[lease] = _Measured()

    def note(
        self, request_id: str, usage: Mapping[str, int] | None = None, metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Keep the tokens of a finished sequence, and metrics of it.

        `request_id`: the engine's own, with the lease's id in it, such as `chatcmpl-<lease>`.
        """
        found = _ID.search(request_id) if self._expected else None
        measured = None if found is None else self._expected.get(found[0])
        if measured is None:
            return
        if usage is not None:
            measured.sequences += 1
            measured.usage["completion_tokens"] += usage["completion_tokens"]
            measured.usage["prompt_tokens"] = max(measured.usage["prompt_tokens"], usage["prompt_tokens"])
        measured.metrics.update(metrics or {})

    def take(self, lease: str) -> dict[str, Any]:
        """Return and forget what was kept: the fields `usage` and `metrics` of a report.

        Of several sequences side by side there are no metrics, as in vLLM's answers: they are no measure of one alone.
        """
        measured = self._expected.pop(lease, None)
        if measured is None or not measured.sequences:
            return {}
        return {"usage": measured.usage, "metrics": measured.metrics if measured.sequences == 1 else None}
