"""What a pool reports of a finished request by drafter, in the answer's `metrics.speculative_decoding.drafters`:

{"general": {"steps": 12, "drafted": 40, "accepted": 21, "scored": 30, "tau": 1.62}, "none": {"steps": 8, ...}}
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FIELD = "drafters"
"""Name within `metrics.speculative_decoding`."""


_COUNTS = ("steps", "drafted", "accepted", "scored")


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
        counts = [values.get(key, 0) for key in _COUNTS]
        tau = values.get("tau")
        fine = all(type(count) is int and count >= 0 for count in counts)
        if fine and (tau is None or (isinstance(tau, int | float) and math.isfinite(tau) and tau >= 1)):
            found[str(name)] = DrafterReport(
                steps=counts[0],
                drafted=counts[1],
                accepted=counts[2],
                scored=counts[3],
                tau=None if tau is None else float(tau),
                left_out=values.get("left_out") is True,
            )
    return found
