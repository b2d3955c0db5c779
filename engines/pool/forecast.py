"""What a router expects of a pool's drafters for one request, as the engine receives it in `vllm_xargs`."""

import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

XARG = "draftpick_forecast"
"""Key of a request's `vllm_xargs` whose value is the forecast as JSON."""
MAX_WEIGHT = 32.0
"""Within a few steps what is seen must outweigh what was expected."""
_WEIGHT = 8.0

Objective = Literal["latency", "throughput", "cost"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """Expected acceptance by drafter, of a request.

    `tau`: acceptance length, bonus token included, of drafts of full length; `weight`: as so many scored steps;
    `objective`: latency counts the request's own time double against the batch's; `only`: a pin, the one drafter (or
    `none`) that may draft.
    """

    tau: dict[str, float] = field(default_factory=dict)
    weight: float = _WEIGHT
    objective: Objective = "throughput"
    only: str | None = None

    def to_json(self) -> str:
        """Return the value of `vllm_xargs`."""
        fields: dict[str, Any] = {"tau": self.tau, "weight": self.weight, "objective": self.objective}
        return json.dumps(fields if self.only is None else {**fields, "only": self.only}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: Any) -> "Forecast | None":
        """Parse a forecast: None for anything else. `survival` by drafter, P(the first i tokens are accepted), may
        stand in the place of `tau`."""
        try:
            fields = json.loads(text)
            survival = {name: 1.0 + sum(map(float, values)) for name, values in fields.get("survival", {}).items()}
            tau = {name: float(value) for name, value in {**survival, **fields.get("tau", {})}.items()}
            weight = min(float(fields.get("weight", _WEIGHT)), MAX_WEIGHT)
            objective, only = fields.get("objective", "throughput"), fields.get("only")
        except (ValueError, TypeError, AttributeError):
            return None
        fine = all(math.isfinite(value) and value >= 1 for value in tau.values()) and weight >= 0
        known = objective in ("latency", "throughput", "cost") and (only is None or isinstance(only, str))
        return cls(tau, weight, objective, only) if fine and known else None
