"""Reads the few fields of a request body that a decision needs. The body itself is forwarded unchanged."""

from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from draftpick.engines.pool.forecast import XARG, Forecast
from draftpick.router.errors import BadRequest

LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Fields that limit the output tokens, by their API."""
CHARS_PER_TOKEN = 4
MAX_TEXT_CHARS = 4000
"""Longer prompts are truncated, for the embedding only: beginning and end are kept."""

_VALUES = 10
"""Values of a body for each object that it may have."""

TERMINATED_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""Paths whose streams end with a known terminator."""
_ENGINE_ARGS = "vllm_xargs"


@dataclass(frozen=True, slots=True)
class Request:
    """The parsed request. `body`: the bytes for the engine.

    `turns`: messages of the conversation so far. `structured`: the answer has a prescribed format. `num_answers`: of
    all prompts together. `fields`: the parsed body, if kept. `engine_args`: the request's own `vllm_xargs`.
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
    num_answers: int = 1
    engine_args: Any = None

    @property
    def max_tokens(self) -> float | None:
        """Limit of the output tokens of an answer, if the request has one."""
        sampling = self.sampling or {}
        return next((sampling[name] for name in LIMITS if name in sampling), None)

    @property
    def approximate_prompt_tokens(self) -> int:
        """Tokens of the prompt, estimated from its length."""
        chars = len(self.text) if len(self.text) <= MAX_TEXT_CHARS else len(self.body)
        return chars // CHARS_PER_TOKEN


class JsonLimits(Protocol):
    """Limits of a body; see `draftpick.router.config.router_config`."""

    @property
    def max_json_depth(self) -> int: ...
    @property
    def max_json_objects(self) -> int: ...


@dataclass(frozen=True, slots=True)
class _DefaultLimits:
    max_json_depth: int = 128
    max_json_objects: int = 100_000


def parse(path: str, body: bytes, limits: JsonLimits = _DefaultLimits(), *, keep_fields: bool = False) -> Request:
    """Parse a body. `keep_fields`: keep the parsed fields, for a stream that may be resumed.

    Raises `BadRequest` for a body that is not a JSON object, or exceeds `limits`. The engine reports all other errors.
    """
    reader = _TEXT_READERS.get(path)
    if reader is None:
        return Request(path, body, text="")
    # The count of brackets bounds number and depth of objects and is cheap; most bodies with many have them in text.
    brackets = body.count(b"{") + body.count(b"[")
    if brackets > limits.max_json_objects or body.count(b",") > _VALUES * limits.max_json_objects:
        text = f"the body has more than {limits.max_json_objects} objects or {_VALUES} times as many values"
        raise BadRequest(text, code="too_many_objects")
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_json")
    if brackets > limits.max_json_depth and _depth(fields) > limits.max_json_depth:
        raise BadRequest(f"the body is nested deeper than {limits.max_json_depth} levels", code="nested_too_deeply")
    stream = fields.get("stream") is True
    hide_usage = stream and path in _USAGE_PATHS and not _asks_for_usage(fields)
    if hide_usage:
        body = _ask_for_usage(fields, body)
    text, turns, num_answers = truncate(reader(fields)), _turns(fields), _num_answers(path, fields)
    kept, sampling, given = fields if keep_fields else None, _sampling(fields), fields.get(_ENGINE_ARGS)
    if num_answers > 1:
        sampling["n"] = float(num_answers)
    structured = _structured(fields)
    return Request(path, body, text, stream, hide_usage, sampling, turns, structured, kept, num_answers, given)


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
    names = ("temperature", "top_p", "top_k", *LIMITS, "n")
    return {
        name: float(v) for name in names if isinstance(v := fields.get(name), int | float) and not isinstance(v, bool)
    }


_MULTIPLIERS = ("n", "best_of", "use_beam_search")


def _num_answers(path: str, fields: dict[str, Any]) -> int:
    """Sequences that the engine decodes: `n` (or `best_of`) for each prompt; at least 2 in a beam search."""
    prompt = fields.get("prompt")
    if path == "/v1/responses" or (fields.keys().isdisjoint(_MULTIPLIERS) and not isinstance(prompt, list)):
        return 1
    each = max(_whole(fields.get("n")), _whole(fields.get("best_of")), 2 if fields.get("use_beam_search") else 1)
    several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)  # a list of numbers is one prompt
    return each * (len(prompt) if several and isinstance(prompt, list) else 1)


def _whole(value: Any) -> int:
    """A count as the engine reads it, from a number or its text; 1 for anything else."""
    try:
        return max(int(value), 1)
    except (TypeError, ValueError, OverflowError):
        return 1


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
