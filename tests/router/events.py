"""Event streams in vLLM's form."""

from typing import Any

import orjson

HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
SPECULATION = {"mean_acceptance_length": 2.5, "draft_acceptance_rate": 0.5, "num_spec_steps": 2}
METRICS = {
    "queue_time_ms": 30.0,
    "time_to_first_token_ms": 40.0,
    "generation_time_ms": 100.0,
    "speculative_decoding": SPECULATION,
}
USAGE = {"prompt_tokens": 7, "total_tokens": 12, "completion_tokens": 5}
DONE = b"data: [DONE]"


def event(fields: dict[str, Any], name: str | None = None) -> bytes:
    line = b"data: " + orjson.dumps(fields)
    return line if name is None else b"event: " + name.encode() + b"\n" + line


def delta(reason: str | None = None, **content: Any) -> bytes:
    choice = {"index": 0, "delta": content, "logprobs": None, "finish_reason": reason}
    return event({**HEAD, "choices": [choice]})


def text(content: str) -> bytes:
    return event({**HEAD, "choices": [{"index": 0, "text": content, "finish_reason": None}]})


def joined(*events: bytes) -> bytes:
    return b"".join(one + b"\n\n" for one in events)


ROLE = delta(role="assistant", content="")
USAGE_CHUNK = event({**HEAD, "choices": [], "usage": USAGE, "metrics": METRICS})
CHAT_EVENTS = (
    ROLE,
    delta(content="The"),
    delta(content=" cat sat, \u00e9\n"),
    delta("stop", content=""),
    USAGE_CHUNK,
    DONE,
)
COMPLETION_EVENTS = (text("The"), text(" cat"), USAGE_CHUNK, DONE)
RESPONSES_EVENTS = (
    event({"type": "response.created", "response": {"status": "in_progress", "usage": None}}, "response.created"),
    event({"type": "response.output_item.added", "item": {}}, "response.output_item.added"),
    event({"type": "response.output_text.delta", "delta": "The cat"}, "response.output_text.delta"),
    event(
        {
            "type": "response.completed",
            "response": {"status": "completed", "usage": {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}},
        },
        "response.completed",
    ),
)
STREAMS = {"chat": CHAT_EVENTS, "completions": COMPLETION_EVENTS, "responses": RESPONSES_EVENTS}
