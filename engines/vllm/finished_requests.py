"""What vLLM in this process measures of finished requests whose outcome is to be reported."""

from collections.abc import Iterable
from typing import Any

from draftpick.engines.pool.report import FIELD
from draftpick.engines.reporting.measurements import Measurements
from draftpick.engines.vllm.pool_reports import KEY

MEASUREMENTS = Measurements()
"""vLLM constructs its middleware, its statistics and its outputs each by itself; they meet here."""


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


def note_acceptance(outputs: Iterable[Any]) -> None:
    """Note the acceptance in vLLM's `EngineCoreOutput`s of finished sequences, and a pool's reports by drafter."""
    for one in outputs:
        if one.finish_reason is None or one.spec_decode_metrics is None:
            continue
        reports = (one.kv_transfer_params or {}).get(KEY)
        speculation = {**one.spec_decode_metrics.to_dict(), **({FIELD: reports} if reports else {})}
        MEASUREMENTS.note(one.request_id, metrics={"speculative_decoding": speculation})


def install() -> None:
    """Read the outputs of vLLM's core: answers carry acceptance only if the client asks for usage. Idempotent."""
    from vllm.v1.engine.output_processor import OutputProcessor

    process = OutputProcessor.process_outputs
    if KEY in vars(process):
        return

    def process_outputs(self: Any, engine_core_outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        if len(MEASUREMENTS):
            note_acceptance(engine_core_outputs)
        return process(self, engine_core_outputs, *args, **kwargs)

    vars(process_outputs)[KEY] = True
    OutputProcessor.process_outputs = process_outputs
