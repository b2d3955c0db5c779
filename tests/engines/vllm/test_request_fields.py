"""Request fields are read as vLLM's own models read them."""

import warnings
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftpick.engines.http.json_values import to_bool, to_number
from draftpick.router.openai_request import parse
from tests.engines.http.test_json_values import VALUES
from tests.fleet import CHAT, COMPLETIONS

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def accepted(model: Any, field: str, value: Any) -> Any:
    """What a model of vLLM makes of a field; None if it rejects it."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(model.model_fields[field].annotation).validate_python(value)
    except (ValidationError, OverflowError):
        return None


@given(VALUES)
@settings(max_examples=300, deadline=None)
def test_booleans_and_numbers_are_what_vllm_takes(value: Any) -> None:
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    for model in (ChatCompletionRequest, CompletionRequest, ResponsesRequest, AnthropicMessagesRequest):
        assert to_bool(value) is accepted(model, "stream", value)
    for field in ("temperature", "top_p", "n", "max_tokens", "top_k", "min_p"):
        taken = accepted(ChatCompletionRequest, field, value)
        if taken is not None and abs(taken) < 1e308:
            assert to_number(value) == taken


SMALL = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 40), st.floats(0, 2), st.sampled_from(["true", "1", "2", "0.5", "x", ""])
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("stream", "n", "temperature", "top_p", "top_k", "min_p", "use_beam_search"), SMALL),
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "prompt_logprobs"), SMALL),
    "stream_options": st.none() | st.dictionaries(st.sampled_from(["include_usage", "continuous_usage_stats"]), SMALL),
    "logit_bias": st.none() | st.dictionaries(st.sampled_from(["1", "22"]), SMALL, max_size=2),
    "allowed_token_ids": st.none() | st.lists(st.integers(0, 9), max_size=2),
    "bad_words": st.lists(st.just("no"), max_size=1),
    "response_format": st.none() | st.fixed_dictionaries({"type": st.sampled_from(["text", "json_object", "x"])}),
    "tools": st.none(),
}
PROMPTS = st.one_of(
    st.text(max_size=5),
    st.lists(st.text(max_size=5), min_size=1, max_size=3),
    st.lists(st.integers(0, 9), min_size=1, max_size=3),
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=1, max_size=3),
)


def validated(model: Any, fields: dict[str, Any]) -> Any:
    """The request as vLLM has it; None if it rejects it."""
    from pydantic import ValidationError
    from vllm.exceptions import VLLMValidationError

    try:
        return model.model_validate(orjson.loads(orjson.dumps(fields)))
    except (ValidationError, VLLMValidationError, ValueError, OverflowError):
        return None


def numbers_of(request: Any) -> dict[str, Any]:
    """Sampling fields that have a value."""
    read = {name: getattr(request, name) for name in ("temperature", "top_p", "top_k")}
    return {name: value for name, value in read.items() if value is not None}


def asks_of(request: Any) -> set[str]:
    """What vLLM finds asked for, by its own reading."""
    names = ("logit_bias", "allowed_token_ids", "bad_words", "prompt_logprobs", "tools")
    found = {name for name in names if getattr(request, name, None)}
    if request.min_p is not None and request.min_p > 1e-5:
        found.add("min_p")
    if request.response_format is not None and request.response_format.type != "text":
        found.add("response_format")
    return found | ({"use_beam_search"} if request.use_beam_search else set())


@given(st.fixed_dictionaries({}, optional=FIELDS))
@settings(max_examples=400, deadline=None)
def test_a_chat_request_asks_for_what_vllm_finds_in_it(fields: dict[str, Any]) -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    if (theirs := validated(ChatCompletionRequest, body)) is None:
        return
    ours = parse(CHAT, orjson.dumps(body))
    assert ours.stream is bool(theirs.stream)
    usage = theirs.stream_options is not None and bool(theirs.stream_options.include_usage)
    assert ours.hide_usage is (ours.stream and not usage)
    sent = validated(ChatCompletionRequest, orjson.loads(ours.body))
    assert not ours.stream or sent.stream_options.include_usage
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        limit = theirs.max_tokens if theirs.max_completion_tokens is None else theirs.max_completion_tokens
    assert ours.max_tokens == limit
    assert numbers_of(theirs).items() <= (ours.sampling or {}).items()
    assert ours.num_answers == max(theirs.n or 1, 2 if theirs.use_beam_search else 1)
    assert ours.asks == asks_of(theirs)


@given(PROMPTS, st.fixed_dictionaries({}, optional={k: FIELDS[k] for k in ("n", "max_tokens", "stream", "logit_bias")}))
@settings(max_examples=300, deadline=None)
def test_a_completion_has_as_many_answers_and_tokens_as_vllm_finds(prompt: Any, fields: dict[str, Any]) -> None:
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    body = {"model": "m", "prompt": prompt, **fields}
    if (theirs := validated(CompletionRequest, body)) is None:
        return
    ours = parse(COMPLETIONS, orjson.dumps(body))
    prompts = theirs.prompt if isinstance(theirs.prompt, list) and not isinstance(theirs.prompt[0], int) else [prompt]
    assert ours.num_answers == len(prompts) * max(theirs.n, 1)
    assert ours.max_tokens == theirs.max_tokens
    assert ours.stream is bool(theirs.stream)
    if isinstance(prompts[0], list):
        assert ours.num_prompt_tokens == max(map(len, prompts))
