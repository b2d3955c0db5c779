"""What an engine measures of the requests that it is to report, from their arrival until they are reported."""

import re
from typing import Any

_ID = re.compile(r"[0-9a-f]{32}")


class Measurements:
    """Measurements by lease. Those of other requests are dropped at once, so that nothing grows."""

    def __init__(self) -> None:
        self._expected: dict[str, dict[str, Any]] = {}

    def expect(self, lease: str) -> None:
        """Keep what is measured of a request with this id, from now until `take`."""
        self._expected[lease] = {}

    def wants(self, request_id: str) -> str | None:
        """The lease in an engine's own id of a request, such as `chatcmpl-<lease>`; None for requests of others."""
        if not self._expected or (found := _ID.search(request_id)) is None:
            return None
        return found[0] if found[0] in self._expected else None

    def note(self, request_id: str, usage: dict[str, int] | None = None, metrics: dict[str, Any] | None = None) -> None:
        """Keep what is measured. Of several sequences of one request tokens add up, and one's times stand for all."""
        if (lease := self.wants(request_id)) is None:
            return
        kept = self._expected[lease]
        if usage is not None:
            before = kept.setdefault("usage", {})
            prompt = usage["prompt_tokens"]
            before["completion_tokens"] = before.get("completion_tokens", 0) + usage["completion_tokens"]
            before["prompt_tokens"] = max(before.get("prompt_tokens", 0), prompt)
        if metrics is not None:
            kept["metrics"] = {**kept.get("metrics", {}), **metrics}

    def take(self, lease: str) -> dict[str, Any]:
        """Return and forget what was kept: the fields `usage` and `metrics` of a report."""
        return self._expected.pop(lease, {})
