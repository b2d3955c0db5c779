"""An engine's report of its own load for the routers, at `GET /draftpick/load`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

PATH = "/draftpick/load"
_Count = Annotated[int, Field(ge=0, lt=2**31)]
_Measure = Annotated[float, Field(ge=0, lt=2**31)]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Running and waiting requests of all clients, and recent throughput.

    `kv_cache_usage`: share of the cache's blocks; `tokens_per_s`, `acceptance_length` (None: no drafter, or no steps)
    and `step_s` (None: no steps): means of the last seconds. `sampled`: running requests that sample; `active`: of a
    pool, running requests by drafter; None where an engine does not report them.
    """

    __pydantic_config__ = ConfigDict(extra="ignore", strict=True)

    running: _Count
    waiting: _Count
    kv_cache_usage: _Measure = 0.0
    tokens_per_s: _Measure = 0.0
    acceptance_length: _Measure | None = None
    step_s: _Measure | None = None
    sampled: _Count | None = None
    active: Mapping[str, _Count] | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: bytes) -> "LoadReport | None":
        """Parse a report; None for anything else, since other services may listen at an engine's address."""
        try:
            return _PAGE.validate_json(data)
        except ValidationError:
            return None


_PAGE = TypeAdapter(LoadReport)
