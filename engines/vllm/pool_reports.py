"""The way of a pool's reports from vLLM's worker to the answer's `metrics.speculative_decoding.drafters`.

From the worker to the scheduler they ride on the step's output, from there to the API server on the request's last
output, in the one field there that takes any dictionary, and are taken out of it again.
"""

from collections.abc import Callable
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


def take(answer: Any) -> dict[str, Any]:
    """Return and remove the reports that an answer carries."""
    params = getattr(answer, "kv_transfer_params", None)
    reports: dict[str, Any] = (params or {}).pop(KEY, {})
    if reports and not params:
        answer.kv_transfer_params = None
    return reports


def install() -> None:
    """Let vLLM's API server add the reports to its metrics of an answer. Idempotent."""
    from vllm.entrypoints.openai.chat_completion import serving as chat
    from vllm.entrypoints.openai.completion import serving as completion

    build = chat.build_spec_decoding_metrics
    if KEY in vars(build):
        return

    def build_spec_decoding_metrics(final_res: Any) -> Any:
        metrics, reports = build(final_res), take(final_res)
        if metrics is not None and reports:
            setattr(metrics, FIELD, reports)
        count(reports)
        return metrics

    vars(build_spec_decoding_metrics)[KEY] = True
    for module in (chat, completion):
        module.build_spec_decoding_metrics = build_spec_decoding_metrics


def count(reports: dict[str, Any]) -> None:
    """Count what an answer reports, for `/metrics`."""
    for name, report in parse(reports).items():
        STEPS.labels(name).inc(report.steps)
        DRAFTED.labels(name).inc(report.drafted)
        ACCEPTED.labels(name).inc(report.accepted)
        LEFT_OUT.labels(name).set(report.left_out)
