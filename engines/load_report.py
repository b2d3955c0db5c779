"""An engine's report of its own load for the routers, at `GET /draftpick/load`."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

PATH = "/draftpick/load"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Running and waiting requests of all clients, and recent throughput.

    `kv_cache_usage`: share of the cache's blocks; `tokens_per_s`, `acceptance_length` (None: no drafter, or no steps)
    and `step_s` (None: no steps): means of the last seconds. `sampled`: running requests that sample; `active`: of a
    pool, running requests by drafter; None where an engine does not report them.
    """

    running: int
    waiting: int
    kv_cache_usage: float = 0.0
    tokens_per_s: float = 0.0
    acceptance_length: float | None = None
    step_s: float | None = None
    sampled: int | None = None
    active: Mapping[str, int] | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: bytes) -> "LoadReport | None":
        """Parse a report; None for anything else, since other services may listen at an engine's address."""
        try:
            fields = json.loads(data)
            made = cls(**{name: fields[name] for name in cls.__dataclass_fields__ if name in fields})
            flat = {**asdict(made), **(made.active or {}), "active": None}
            numbers = [v for v in flat.values() if v is not None]
            fine = all(type(v) in (int, float) and math.isfinite(v) and v >= 0 for v in numbers)
        except (ValueError, TypeError, KeyError):
            return None
        return made if fine else None
