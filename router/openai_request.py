"""Reads the few fields of a request body that a decision needs. The body itself is forwarded unchanged."""

from dataclasses import dataclass
from typing import Any

import orjson

from draftpick.engines.pool.forecast import XARG, Forecast
from draftpick.router.errors import BadRequest

MAX_TEXT_CHARS = 4000
"""Longer prompts are truncated, for the embedding only: beginning and end are kept."""

TERMINATED_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""Paths whose streams end with a known terminator."""
_ENGINE_ARGS = "vllm_xargs"


@dataclass(frozen=True, slots=True)
class Request:
    """The parsed request. `body`: the bytes for the engine.

    `turns`: messages of the conversation so far. `structured`: the answer has a prescribed format.
    `fields`: the parsed body, if kept. `engine_args`: the request's own `vllm_xargs`.
    """

    path: str
    body: bytes
    text: str
    stream: bool = False
    hide_usage: bool = False
    sampling: dict[str, float] | None = None
    turns: int = 1
    structured: bool = False
    fields: dict[str, Any] | None = None
    engine_args: Any = None


def parse(path: str, body: bytes, max_depth: int = 128, *, keep_fields: bool = False) -> Request:
    """Parse a body. `keep_fields`: keep the parsed fields, for a stream that may be resumed.

    Raises `BadRequest` for a body that is not a JSON object, or is nested deeper than `max_depth`. The engine reports
    all other errors.
    """
    reader = _TEXT_READERS.get(path)
    if reader is None:
        return Request(path, body, text="")
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_json")
    # The count of brackets bounds the depth and is cheap; most bodies with many have them in their text.
    if body.count(b"{") + body.count(b"[") > max_depth and _depth(fields) > max_depth:
        raise BadRequest(f"the body is nested deeper than {max_depth} levels", code="nested_too_deeply")
    stream = fields.get("stream") is True
    hide_usage = stream and path in _USAGE_PATHS and not _asks_for_usage(fields)
    if hide_usage:
        body = _ask_for_usage(fields, body)
    text, turns = truncate(reader(fields)), _turns(fields)
    kept = fields if keep_fields else None
    given = fields.get(_ENGINE_ARGS)
    return Request(path, body, text, stream, hide_usage, _sampling(fields), turns, _structured(fields), kept, given)


def with_forecast(request: Request, body: bytes, forecast: Forecast) -> bytes:
    """Insert a forecast for a pool into `vllm_xargs`, at the end of a body: the last of two equal keys counts.

    A body without text stays as it is: the engine rejects it.
    """
    own = request.engine_args or {}
    if not request.text or not isinstance(own, dict):
        return body
    end = body.rindex(b"}")
    return body[:end] + b',"vllm_xargs":' + orjson.dumps({**own, XARG: forecast.to_json()}) + body[end:]


def _depth(value: Any) -> int:
    """Nesting of lists and objects."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = [i for v in level for i in (v.values() if isinstance(v, dict) else v)]
        level = [i for i in inner if isinstance(i, dict | list)]
    return depth


def _asks_for_usage(fields: dict[str, Any]) -> bool:
    options = fields.get("stream_options")
    return isinstance(options, dict) and str(options.get("include_usage", "")).lower() in ("true", "1", "yes", "on")


def _ask_for_usage(fields: dict[str, Any], body: bytes) -> bytes:
    """Insert `stream_options.include_usage` at the end of a body: the last of two equal keys counts.

    All other bytes stay the same. `continuous_usage_stats` is dropped: it would add usage to the chunks of a client
    that did not ask for it.
    """
    options = fields.get("stream_options")
    if options is not None and not isinstance(options, dict):
        return body
    kept = {k: v for k, v in (options or {}).items() if k != "continuous_usage_stats"}
    end = body.rindex(b"}")
    return body[:end] + b',"stream_options":' + orjson.dumps({**kept, "include_usage": True}) + body[end:]


def _sampling(fields: dict[str, Any]) -> dict[str, float]:
    """The numeric sampling fields that are present."""
    names = ("temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "max_output_tokens", "n")
    return {
        name: float(v) for name in names if isinstance(v := fields.get(name), int | float) and not isinstance(v, bool)
    }


def _turns(fields: dict[str, Any]) -> int:
    messages = fields.get("messages") or fields.get("input")
    return len(messages) if isinstance(messages, list) else 1


def _structured(fields: dict[str, Any]) -> bool:
    """True if OpenAI's or vLLM's fields prescribe the answer's format."""
    wanted = fields.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    return kind not in (None, "text") or bool(fields.get("structured_outputs") or fields.get("tools"))


def truncate(text: str, max_chars: int = MAX_TEXT_CHARS) -> str:
    """Keep the beginning and the end of a long prompt, where the instruction usually is."""
    if len(text) <= max_chars:
        return text
    half = max_chars // 2
    return text[:half] + "\n" + text[-half:]


def _content(content: Any) -> str:
    """Text of a message's content: a string, or a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(p["text"] for p in content if isinstance(p, dict) and isinstance(p.get("text"), str))


def _messages_text(messages: Any) -> str:
    if not isinstance(messages, list):
        return ""
    return "\n".join(t for m in messages if isinstance(m, dict) and (t := _content(m.get("content"))))


def _prompt_text(prompt: Any) -> str:
    if isinstance(prompt, list):
        return "\n".join(p for p in prompt if isinstance(p, str))
    return prompt if isinstance(prompt, str) else ""


def _input_text(value: Any) -> str:
    return value if isinstance(value, str) else _messages_text(value)


_TEXT_READERS = {
    "/v1/chat/completions": lambda fields: _messages_text(fields.get("messages")),
    "/v1/completions": lambda fields: _prompt_text(fields.get("prompt")),
    "/v1/responses": lambda fields: _input_text(fields.get("input")),
}
_USAGE_PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
