"""The way of a pool's reports from vLLM's worker to the answer's `metrics.speculative_decoding.drafters`.

From the worker to the scheduler they ride on the step's output; from there to the API server on the request's last
output, in the one field there that takes any dictionary. There they are counted, moved to vLLM's own statistics of the
sequence, and so shown where vLLM shows these: not for a request with several sequences.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from prometheus_client import Counter, Gauge

from draftpick.engines.pool.report import FIELD, parse

KEY = "draftpick_pool"
_ATTRIBUTE = "draftpick_reports"

STEPS = Counter("draftpick_pool_steps", "Decoding steps by drafter of a pool", ["drafter"])
DRAFTED = Counter("draftpick_pool_drafted_tokens", "Verified draft tokens by drafter", ["drafter"])
ACCEPTED = Counter("draftpick_pool_accepted_tokens", "Accepted draft tokens by drafter", ["drafter"])
LEFT_OUT = Gauge(
    "draftpick_pool_left_out", "1 for a drafter that failed and is left out", ["drafter"], multiprocess_mode="max"
)


def attach_reports(runner: Any, reports: Callable[[Any], dict[str, Any]]) -> None:
    """Let the outputs of a model runner carry what `reports` says of them."""
    sample = runner.sample_tokens

    def sample_tokens(grammar_output: Any) -> Any:
        output = sample(grammar_output)
        if getattr(output, "sampled_token_ids", None):
            setattr(output, _ATTRIBUTE, reports(output))
        return output

    runner.sample_tokens = sample_tokens


def pass_on(step_output: Any, outputs: Any) -> None:
    """Put the reports of a step's output on the last outputs of the requests that it ended."""
    reports = getattr(step_output, _ATTRIBUTE, None)
    if not reports:
        return
    for of_client in outputs.values():
        for one in of_client.outputs:
            if one.finish_reason is not None and one.request_id in reports:
                one.kv_transfer_params = {**(one.kv_transfer_params or {}), KEY: reports[one.request_id]}


def reports_of(answer: Any) -> dict[str, Any]:
    """Return the reports of a finished answer with one sequence."""
    reports: dict[str, Any] = getattr(answer.outputs[0].spec_decode_metrics, _ATTRIBUTE, {}) if answer.outputs else {}
    return reports


def install() -> None:
    """Let vLLM's API server count all reports, and add them to its metrics of an answer. Idempotent."""
    from vllm.entrypoints.openai.chat_completion import serving as chat
    from vllm.entrypoints.openai.completion import serving as completion
    from vllm.v1.engine.output_processor import RequestState

    build, make = chat.build_spec_decoding_metrics, RequestState.make_request_output
    if KEY in vars(build):
        return

    @wraps(make)
    def make_request_output(
        state: Any,
        new_token_ids: Any,
        pooling_output: Any,
        finish_reason: Any,
        stop_reason: Any,
        kv_transfer_params: dict[str, Any] | None = None,
        *more: Any,  # later versions have further arguments
        **named: Any,
    ) -> Any:
        if kv_transfer_params and KEY in kv_transfer_params:
            reports = kv_transfer_params.pop(KEY)
            kv_transfer_params = kv_transfer_params or None
            count(reports)
            if state.spec_decode_metrics is not None:
                setattr(state.spec_decode_metrics, _ATTRIBUTE, reports)
        given = new_token_ids, pooling_output, finish_reason, stop_reason, kv_transfer_params
        return make(state, *given, *more, **named)

    def build_spec_decoding_metrics(final_res: Any) -> Any:
        metrics = build(final_res)
        if metrics is not None and (reports := reports_of(final_res)):
            setattr(metrics, FIELD, reports)
        return metrics

    vars(build_spec_decoding_metrics)[KEY] = True
    RequestState.make_request_output = make_request_output
    for module in (chat, completion):
        module.build_spec_decoding_metrics = build_spec_decoding_metrics


def count(reports: dict[str, Any]) -> None:
    """Count what an answer reports, for `/metrics`."""
    for name, report in parse(reports).items():
        STEPS.labels(name).inc(report.steps)
        DRAFTED.labels(name).inc(report.drafted)
        ACCEPTED.labels(name).inc(report.accepted)
        LEFT_OUT.labels(name).set(report.left_out)
