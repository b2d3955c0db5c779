"""The way of a prediction through vLLM: from `vllm_xargs` as text to token ids in the API server, from there to the
drafters of the worker, and what came of it to the answer's usage.
"""

import json
from collections.abc import AsyncIterator
from functools import wraps
from typing import Any

from draftpick.engines.drafter_options import DRAFTERS
from draftpick.engines.drafters.prompt_lookup import NgramDrafter
from draftpick.engines.drafters.proposer import Proposer
from draftpick.engines.pool.prediction import COPYING, FIELD, XARG, count_accepted, predicted_text
from draftpick.engines.vllm.pool_options import PoolOptions

KEY = "draftpick_prediction"
_MAX_CHARS_PER_TOKEN = 8
"""Longer texts are cut before they are read: what a model of this length could answer is shorter."""
_OURS = frozenset(spec.class_path for name, spec in DRAFTERS.items() if name in COPYING)

RELIES_ON = {
    "vllm.entrypoints.generate.base.serving:build_spec_decoding_metrics": "5d851548cd2c",
    "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat": "9de81e2e4c5b",
    "vllm.entrypoints.serve.engine.protocol:CompletionTokenUsageInfo": "187c5d8fa452",
    "vllm.v1.engine.input_processor:InputProcessor.process_inputs": "daab90792f49",
    "vllm.v1.engine.output_processor:OutputProcessor.add_request": "9cb93995d340",
    "vllm.v1.engine.output_processor:RequestState.make_request_output": "3be2107a8a58",
    "vllm.v1.spec_decode.ngram_proposer:NgramProposer": "4bf43a295436",
    "vllm.v1.worker.gpu_input_batch:CachedRequestState": "83882bc92442",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.__init__": "531bb48a14b7",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.propose_draft_token_ids": "a60269aca9de",
}
"""What this file calls or wraps of vLLM, with a digest of each's source in vLLM 0.29."""


def copies(vllm_config: Any) -> bool:
    """Return whether an engine has a drafter that copies, alone or in a pool."""
    if (pool := PoolOptions.from_config(vllm_config)) is not None:
        return any(one.method in COPYING for one in pool.drafters)
    drafting = vllm_config.speculative_config
    return drafting is not None and (drafting.method == "ngram" or drafting.model in _OURS)


def read_prediction(params: Any, tokenizer: Any, max_tokens: int) -> None:
    """Replace a prediction in a request's parameters by its token ids, at most `max_tokens`; remove what is no text,
    and any without a `tokenizer`."""
    extra = dict(params.extra_args)
    text = extra.pop(XARG)
    if isinstance(text, str) and text and tokenizer is not None:
        ids = tokenizer.encode(text[: _MAX_CHARS_PER_TOKEN * max_tokens], add_special_tokens=False)
        extra[XARG] = ids[:max_tokens]
    params.extra_args = extra or None


def usage_of(details: Any, found: dict[str, int]) -> dict[str, Any]:
    """Return `completion_tokens_details` with the tokens of a prediction, by OpenAI's names."""
    return {**(details or {}), **{f"{name}_prediction_tokens": count for name, count in found.items()}}


def install() -> None:
    """Let vLLM's API server and workers know of predictions. Idempotent."""
    from vllm.v1.engine.input_processor import InputProcessor

    if KEY in vars(InputProcessor.process_inputs):
        return
    _install_reading(InputProcessor)
    _install_counting()
    _install_usage()
    _install_drafting()


def _install_reading(processor: Any) -> None:
    process = processor.process_inputs

    @wraps(process)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = process(self, *args, **kwargs)
        params = request.sampling_params
        if params is not None and params.extra_args is not None and XARG in params.extra_args:
            tokenizer = self.tokenizer if copies(self.vllm_config) else None
            read_prediction(params, tokenizer, self.model_config.max_model_len)
        return request

    vars(process_inputs)[KEY] = True
    processor.process_inputs = process_inputs


def _install_counting() -> None:
    """Keep a prediction with the API server's state of its request, and count when the answer ends."""
    from vllm.v1.engine.output_processor import OutputProcessor, RequestState

    add, make = OutputProcessor.add_request, RequestState.make_request_output

    @wraps(add)
    def add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        add(self, request, *args, **kwargs)
        params = request.sampling_params
        if params is not None and params.extra_args is not None and XARG in params.extra_args:
            setattr(self.request_states[request.request_id], KEY, params.extra_args[XARG])

    @wraps(make)
    def make_request_output(
        state: Any, new_token_ids: Any, pooling_output: Any, finish_reason: Any, *args: Any, **kwargs: Any
    ) -> Any:
        prediction = getattr(state, KEY, None) if finish_reason is not None else None
        if prediction and state.spec_decode_metrics is not None:
            accepted = count_accepted(prediction, state.detokenizer.output_token_ids)
            found = {"accepted": accepted, "rejected": len(prediction) - accepted}
            setattr(state.spec_decode_metrics, KEY, found)
        return make(state, new_token_ids, pooling_output, finish_reason, *args, **kwargs)

    OutputProcessor.add_request = add_request
    RequestState.make_request_output = make_request_output


def _install_usage() -> None:
    """Show the counts in an answer's metrics and usage."""
    from vllm.entrypoints.openai.chat_completion import serving
    from vllm.entrypoints.openai.chat_completion.serving import CompletionTokenUsageInfo, OpenAIServingChat

    build, complete = serving.build_spec_decoding_metrics, OpenAIServingChat.chat_completion_full_generator
    stream = OpenAIServingChat.chat_completion_stream_generator

    def build_spec_decoding_metrics(final_res: Any) -> Any:
        metrics = build(final_res)
        if metrics is not None and (found := getattr(final_res.outputs[0].spec_decode_metrics, KEY, None)) is not None:
            setattr(metrics, FIELD, found)
        return metrics

    vars(build_spec_decoding_metrics).update(vars(build))

    @wraps(complete)
    async def full_generator(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        response = await complete(self, request, *args, **kwargs)
        metrics = getattr(response, "metrics", None)
        if (found := getattr(getattr(metrics, "speculative_decoding", None), FIELD, None)) is not None:
            details = response.usage.completion_tokens_details
            known = details.model_dump() if details is not None else None
            response.usage.completion_tokens_details = CompletionTokenUsageInfo(**usage_of(known, found))
        return response

    @wraps(stream)
    def stream_generator(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        events = stream(self, request, *args, **kwargs)
        return _with_usage(events) if XARG in (request.vllm_xargs or {}) else events

    serving.build_spec_decoding_metrics = build_spec_decoding_metrics
    OpenAIServingChat.chat_completion_full_generator = full_generator
    OpenAIServingChat.chat_completion_stream_generator = stream_generator


async def _with_usage(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yield a stream's events; the one with the metrics has the counts in its usage, too."""
    async for event in events:
        yield with_usage(event) if f'"{FIELD}":{{"accepted":' in event else event


def with_usage(event: str) -> str:
    """Return an event whose usage has the counts that its metrics have."""
    fields = json.loads(event.removeprefix("data: "))
    usage, found = fields["usage"], fields["metrics"]["speculative_decoding"][FIELD]
    usage["completion_tokens_details"] = usage_of(usage.get("completion_tokens_details"), found)
    return f"data: {json.dumps(fields, separators=(',', ':'))}\n\n"


def _install_drafting() -> None:
    """Tell drafters that have an engine of their own which requests they draft for."""
    from vllm.v1.spec_decode.ngram_proposer import NgramProposer
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    make, propose = GPUModelRunner.__init__, NgramProposer.propose

    @wraps(make)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        drafter = getattr(self, "drafter", None)
        if isinstance(drafter, Proposer | NgramProposer):
            drafter.runner = self

    @wraps(propose)
    def propose_ngrams(
        self: Any, length: int, sampled: list[list[int]], num_tokens: Any, token_ids: Any, slot_mappings: Any = None
    ) -> list[list[int]]:
        drafts: list[list[int]] = propose(self, length, sampled, num_tokens, token_ids, slot_mappings)
        if (runner := getattr(self, "runner", None)) is not None:
            draft_predicted(self, runner, length, sampled, drafts)
        return drafts

    GPUModelRunner.__init__ = init
    NgramProposer.propose = propose_ngrams


def draft_predicted(proposer: Any, runner: Any, length: int, sampled: list[list[int]], drafts: list[list[int]]) -> None:
    """Replace the drafts of vLLM's n-gram proposer for requests with a prediction by those from their whole text."""
    batch, most = runner.input_batch, proposer.max_model_len
    for row, new in enumerate(sampled):
        tokens = batch.token_ids_cpu[row, : int(batch.num_tokens_no_spec[row])]
        if new and len(tokens) < most and (text := predicted_text(runner.requests[batch.req_ids[row]], tokens, most)):
            drafter = NgramDrafter(length, proposer.max_n, proposer.min_n)
            room = min(length, most - len(tokens) - 1)
            drafts[row] = text.draft(drafter.draft(None, text.extend(tokens), room)[0].tolist(), room)
