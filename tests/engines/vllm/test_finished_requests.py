"""What vLLM measures of a request that is to be reported, under the names of its own answers."""

from types import SimpleNamespace
from typing import Any

from draftpick.engines.vllm.finished_requests import MEASUREMENTS, note_acceptance, note_times
from draftpick.engines.vllm.pool_reports import KEY

LEASE, OTHER = "0123456789abcdef" * 2, "f" * 32
SPECULATION = {"num_spec_steps": 4, "num_accepted_draft_tokens": 3}


def finished(request_id: str | None, tokens: int = 9) -> Any:
    return SimpleNamespace(
        request_id=request_id,
        num_prompt_tokens=5,
        num_generation_tokens=tokens,
        queued_time=0.001,
        prefill_time=0.02,
        decode_time=0.3,
    )


def output(id: str, finish_reason: str | None = "stop", drafts: bool = True, params: Any = None) -> Any:
    metrics = SimpleNamespace(to_dict=lambda: SPECULATION) if drafts else None
    return SimpleNamespace(
        request_id=f"chatcmpl-{id}-1a2b3c4d",
        finish_reason=finish_reason,
        spec_decode_metrics=metrics,
        kv_transfer_params=params,
    )


def test_tokens_times_and_acceptance_of_a_leased_request_are_kept() -> None:
    MEASUREMENTS.expect(LEASE)
    reports = {"none": {"steps": 1}}
    note_acceptance([output(LEASE, params={KEY: reports, "own": 1}), output(OTHER), output(LEASE, None)])
    note_times([finished(f"chatcmpl-{LEASE}"), finished(f"chatcmpl-{OTHER}"), finished(None)])
    assert MEASUREMENTS.take(LEASE) == {
        "usage": {"prompt_tokens": 5, "completion_tokens": 9},
        "metrics": {
            "queue_time_ms": 1.0,
            "time_to_first_token_ms": 20.0,
            "generation_time_ms": 300.0,
            "speculative_decoding": {**SPECULATION, "drafters": reports},
        },
    }
    assert not len(MEASUREMENTS)


def test_an_engine_without_drafts_or_without_a_pool_has_less_to_tell() -> None:
    for drafts in (False, True):
        MEASUREMENTS.expect(LEASE)
        note_acceptance([output(LEASE, drafts=drafts)])
        note_times([finished(f"chatcmpl-{LEASE}")])
        told = MEASUREMENTS.take(LEASE)["metrics"].get("speculative_decoding")
        assert told == (SPECULATION if drafts else None)


def test_several_sequences_add_up_and_are_no_measure_of_one() -> None:
    MEASUREMENTS.expect(LEASE)
    note_times([finished(f"cmpl-{LEASE}-{number}", tokens=3) for number in range(2)])
    assert MEASUREMENTS.take(LEASE) == {"usage": {"prompt_tokens": 5, "completion_tokens": 6}, "metrics": None}
