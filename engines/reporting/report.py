"""What became of a request, as told to the router that decided for it: by the engine, or by the gateway that sent it.

`usage` and `metrics` are those of an answer of vLLM, acceptance by drafter of a pool included
(`metrics.speculative_decoding.drafters`), so that a router reads a report as it reads an answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

PATH = "/v1/outcomes"
MAX_BATCH = 128
LOST = ("full", "old", "refused")
"""Why an engine lost reports: too many waited, its router could not be reached in time, or took none from it."""
Failure = Literal["unreachable", "timeout", "broken", "cancelled"]
"""How a request ended without a complete answer: no connection, no answer in time, broken off, or given up."""
_Count = Annotated[int, Field(ge=0, lt=2**31)]
_Seconds = Annotated[float, Field(ge=0, lt=1e6, allow_inf_nan=False)]


@with_config(ConfigDict(extra="ignore"))
class Usage(TypedDict, total=False):
    """Tokens, by the names of any of the APIs."""

    prompt_tokens: _Count
    completion_tokens: _Count
    input_tokens: _Count
    output_tokens: _Count


@dataclass(frozen=True, slots=True)
class OutcomeReport:
    """One finished request.

    `status`: of its answer, or of the error event that ended it; `error`: None if the answer was complete. `e2e_s`:
    from the arrival of the request at the engine to the last byte of its answer; `ttft_s`: to the first content, where
    `metrics` do not say it.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    lease: Annotated[str, Field(pattern=r"^[0-9a-f]{32}(\.[1-9])?$", description="id of a lease")]
    status: Annotated[int, Field(ge=100, le=599, description="HTTP status of the answer")] | None = None
    error: Annotated[Failure | None, Field(description="how it ended, if not with a complete answer")] = None
    e2e_s: Annotated[_Seconds | None, Field(description="seconds from sending the request to its last byte")] = None
    ttft_s: Annotated[_Seconds | None, Field(description="seconds from sending it to the first content")] = None
    usage: Annotated[Usage | None, Field(description="`usage` of the answer")] = None
    metrics: Annotated[Mapping[str, Any] | None, Field(description="vLLM's `metrics` of the answer")] = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Several reports. `lost`: by reason, the reports that an engine lost since its last batch."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    outcomes: Annotated[Sequence[OutcomeReport], Field(max_length=MAX_BATCH)]
    lost: Mapping[str, _Count] = field(default_factory=dict)


BATCH = TypeAdapter(Batch)
