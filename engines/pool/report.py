"""What a pool reports of a finished request by drafter, in the answer's `metrics.speculative_decoding.drafters`:

{"general": {"steps": 12, "drafted": 40, "accepted": 21, "scored": 30, "tau": 1.62}, "none": {"steps": 8, ...}}
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from draftpick.engines.http.json_values import MAX_TAU, to_count, to_figure

FIELD = "drafters"
"""Name within `metrics.speculative_decoding`."""


@dataclass(slots=True)
class DrafterReport:
    """One drafter in one request.

    `steps`: decoding steps that verified its tokens (of `none`: steps without drafted tokens), `drafted` and `accepted`
    in them. `scored`: positions of the text at which its proposal, verified or not, was compared with what came;
    `tau`: the acceptance length that these scores give a draft of full length at every step, None without any.
    `left_out`: the drafter did not load, or failed, and drafts no more.
    """

    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    scored: int = 0
    tau: float | None = None
    left_out: bool = False

    def to_fields(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


def parse(fields: Any) -> dict[str, DrafterReport]:
    """Parse the reports by drafter; skips what is none."""
    if not isinstance(fields, Mapping):
        return {}
    found = {}
    for name, values in fields.items():
        if not isinstance(values, Mapping):
            continue
        counts = [to_count(values.get(count, 0)) for count in ("steps", "drafted", "accepted", "scored")]
        tau, told = to_figure(values.get("tau"), 1.0, MAX_TAU), values.get("tau")
        known = [count for count in counts if count is not None]
        if len(known) == len(counts) and (tau is not None or told is None):
            steps, drafted, accepted, scored = known
            left_out = values.get("left_out") is True
            found[str(name)] = DrafterReport(steps, drafted, accepted, scored, tau, left_out)
    return found
