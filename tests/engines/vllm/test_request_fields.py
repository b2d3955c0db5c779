"""Request fields are read as vLLM's own models read them."""

from typing import Any

import pytest
from hypothesis import given, settings

from draftpick.engines.http.json_values import to_bool, to_number
from tests.engines.http.test_json_values import VALUES

pytestmark = pytest.mark.vllm


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
