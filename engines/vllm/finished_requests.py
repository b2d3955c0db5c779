"""What vLLM in this process measures of finished requests whose outcome is to be reported."""

from collections.abc import Iterable
from typing import Any

from draftpick.engines.reporting.measurements import Measurements

MEASUREMENTS = Measurements()
"""vLLM constructs its middleware, its statistics and its answers each by itself; they meet here."""


def note_times(finished: Iterable[Any]) -> None:
    """Note the tokens and times of vLLM's `FinishedRequestStats`, by the names of its metrics of an answer."""
    for one in finished:
        usage = {"prompt_tokens": one.num_prompt_tokens, "completion_tokens": one.num_generation_tokens}
        times_s = {
            "queue_time_ms": one.queued_time,
            "time_to_first_token_ms": one.prefill_time,
            "generation_time_ms": one.decode_time,
        }
        MEASUREMENTS.note(one.request_id or "", usage, {name: 1000 * time_s for name, time_s in times_s.items()})


def note_acceptance(request_id: str, metrics: Any) -> None:
    """Note vLLM's `SpeculativeDecodingMetrics` of an answer, with a pool's reports by drafter."""
    if MEASUREMENTS.wants(request_id) is not None:
        MEASUREMENTS.note(request_id, metrics={"speculative_decoding": metrics.model_dump()})
