"""Reads the few fields of a request body that a decision needs, as vLLM reads them.

The body itself is forwarded unchanged, unless it takes more than strict JSON in UTF-8 to read it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from draftpick.engines.http import json_values
from draftpick.engines.http.json_values import to_bool, to_number
from draftpick.router.errors import BadRequest

LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""Fields that limit the output tokens; a request has at most one of them in `Request.sampling`."""
CHARS_PER_TOKEN = 4
MAX_TEXT_CHARS = 4000
"""Longer prompts are truncated, for the embedding only: beginning and end are kept."""

_VALUES = 10
"""Values of a body for each object that it may have."""
_MAX_LAX_BYTES, _MAX_LAX_VALUES = 2**22, 20_000
"""Of a body that is JSON for Python alone: its reader would hold up all others."""

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
_CHAT = "/v1/chat/completions"
TERMINATED_PATHS = frozenset({_CHAT, "/v1/completions", RESPONSES, MESSAGES})
"""Paths that generate text; their streams end with a known terminator."""
ENGINE_ARGS, _PREDICTION = "vllm_xargs", "prediction"


@dataclass(frozen=True, slots=True)
class Request:
    """The parsed request. `body`: the bytes for the engine; `client_body`: the same as the client asked, without usage
    that only the router asks for.

    `turns`: messages of the conversation so far. `structured`: the answer has a prescribed format. `num_answers`: of
    all prompts together. `fields`: the parsed body, if kept. `engine_args`: the request's own `vllm_xargs`. `model`: as
    asked for. `asks`: what not every engine takes, by name (`ASKS`, and `image`, `audio`, `video`, `file`).
    `num_prompt_tokens`: of a prompt of token ids. `state_id`: the stored response that the request continues or asks
    for. `prediction`: the text of the field of that name, which the body has no more. `session`: its name in a field of
    OpenAI's. `tool_results`: messages that are results of tools, of a request with tools or a session; `after_tool`:
    the last message is one.
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
    model: str | None = None
    asks: frozenset[str] = frozenset()
    num_prompt_tokens: int | None = None
    state_id: str | None = None
    prediction: str | None = None
    client_body: bytes = b""
    session: str | None = None
    tool_results: int = 0
    after_tool: bool = False

    @property
    def generates(self) -> bool:
        """True if the answer is generated text, so that a policy decides."""
        return self.path in TERMINATED_PATHS

    @property
    def max_tokens(self) -> float | None:
        """Limit of the output tokens of an answer, if the request has one."""
        sampling = self.sampling or {}
        return next((sampling[name] for name in LIMITS if name in sampling), None)

    @property
    def approximate_prompt_tokens(self) -> int:
        """Tokens of the prompt: counted if it consists of token ids, else estimated from its length."""
        if self.num_prompt_tokens is not None:
            return self.num_prompt_tokens
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
        stored = path.startswith(RESPONSES + "/")
        return Request(path, body, text="", state_id=path.split("/")[3] if stored else None, client_body=body)
    fields, body, write = _parse_object(body, limits)
    prediction = None
    if _PREDICTION in fields and path == _CHAT:
        prediction = _prediction(fields.pop(_PREDICTION))
        body = write(fields)
    client_body = body
    stream = "stream" in fields and to_bool(fields["stream"]) is True
    hide_usage = False
    if stream and path in _USAGE_PATHS:
        body, hide_usage = _with_usage(fields, body, write)
    found: set[str] = set()
    text, num_prompt_tokens = reader(fields, found)
    if write is not orjson.dumps:  # half of a surrogate pair is no text
        text = text.encode(errors="replace").decode()
    sampling, num_answers, structured, asks = _sampling(path, fields), 1, False, _NO_ASKS
    session, tool_results, after_tool = None, 0, False
    messages = fields.get("messages") or fields.get("input")
    if found or not _SPECIAL.isdisjoint(fields) or type(fields.get("prompt")) is list:
        num_answers, structured, asks = _num_answers(path, fields), _structured(fields), _asks(fields, found)
        if num_answers > 1:
            sampling["n"] = float(num_answers)
        session = _session(fields)
        tool_results, after_tool = _tool_results(messages)
    model, previous = fields.get("model"), fields.get("previous_response_id")
    return Request(
        path,
        body,
        truncate(text),
        stream,
        hide_usage,
        sampling,
        len(messages) if isinstance(messages, list) else 1,
        structured,
        fields if keep_fields else None,
        num_answers,
        fields.get(ENGINE_ARGS),
        model if isinstance(model, str) else None,
        asks,
        num_prompt_tokens,
        previous if path == RESPONSES and isinstance(previous, str) else None,
        prediction,
        client_body,
        session,
        tool_results,
        after_tool,
    )


def _session(fields: dict[str, Any]) -> str | None:
    """The name of the session in one of OpenAI's own fields, of which the engine judges the form."""
    conversation = fields.get("conversation")
    name = conversation.get("id") if isinstance(conversation, dict) else conversation
    name = name or fields.get("prompt_cache_key")
    return name if isinstance(name, str) and name else None


_TOOL_RESULTS = frozenset({"function_call_output", "custom_tool_call_output", "mcp_call", "tool_result"})


def _tool_results(messages: Any) -> tuple[int, bool]:
    """The number of messages that are results of tools, and whether the last message is one."""
    if not isinstance(messages, list):
        return 0, False
    found = [isinstance(message, dict) and _is_tool_result(message) for message in messages]
    return sum(found), bool(found) and found[-1]


def _is_tool_result(message: dict[str, Any]) -> bool:
    """True if a message is one of OpenAI's, or of Anthropic's, whose content has such a part."""
    if message.get("role") == "tool" or message.get("type") in _TOOL_RESULTS:
        return True
    content = message.get("content")
    return isinstance(content, list) and any(isinstance(p, dict) and p.get("type") == "tool_result" for p in content)


def _prediction(value: Any) -> str | None:
    """The text of OpenAI's `prediction`; None for null or without text. Raises `BadRequest`."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _bad_prediction("", "an object with `type` and `content`")
    if value.get("type") != "content":
        raise _bad_prediction(".type", "`content`")
    content = value.get("content")
    if isinstance(content, str):
        return content or None
    if not isinstance(content, list):
        raise _bad_prediction(".content", "a string, or a list of parts of type `text`")
    for i, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise _bad_prediction(f".content[{i}].type", "`text`")
        if not isinstance(part.get("text"), str):
            raise _bad_prediction(f".content[{i}].text", "a string")
    return "".join(part["text"] for part in content) or None


def _bad_prediction(place: str, wanted: str) -> BadRequest:
    field = f"{_PREDICTION}{place}"
    return BadRequest(f"{field} must be {wanted}", param=field, code="invalid_prediction")


def _parse_object(body: bytes, limits: JsonLimits) -> tuple[dict[str, Any], bytes, json_values.Write]:
    """The fields of a body, the body in UTF-8, and what writes such fields. Raises `BadRequest`."""
    # The count of brackets bounds number and depth of objects and is cheap; most bodies with many have them in text.
    brackets, commas = body.count(b"{") + body.count(b"["), body.count(b",")
    if brackets > limits.max_json_objects or commas > _VALUES * limits.max_json_objects:
        text = f"the body has more than {limits.max_json_objects} objects or {_VALUES} times as many values"
        raise BadRequest(text, code="too_many_objects")
    try:
        fields, write = json_values.parse(body, strict=len(body) > _MAX_LAX_BYTES or commas > _MAX_LAX_VALUES)
    except ValueError as error:
        raise BadRequest(f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise BadRequest("the body must be a JSON object", code="invalid_json")
    if brackets > limits.max_json_depth and _depth(fields) > limits.max_json_depth:
        raise BadRequest(f"the body is nested deeper than {limits.max_json_depth} levels", code="nested_too_deeply")
    return fields, body if write is orjson.dumps else write(fields), write


def with_engine_args(request: Request, more: Mapping[str, str]) -> dict[str, Any] | None:
    """The request's `vllm_xargs` with `more` of ours; None for a request that gets none: without text, the engine
    rejects it."""
    own = request.engine_args or {}
    return {**own, **more} if more and request.text and isinstance(own, dict) else None


def insert_engine_args(request: Request, body: bytes, more: Mapping[str, str]) -> bytes:
    """Insert arguments of ours into `vllm_xargs` of a body."""
    args = with_engine_args(request, more)
    return body if args is None else with_args(request, body, args)


def with_args(request: Request, body: bytes, args: dict[str, Any]) -> bytes:
    """Set `vllm_xargs` in a body of the request; all else stays the same, as far as it had none."""
    if request.engine_args is None and b'"vllm_xargs"' not in body:
        return _append(body, ENGINE_ARGS, args)
    fields, _ = json_values.parse(body)
    return json_values.dumps({**fields, ENGINE_ARGS: args})


def _append(body: bytes, name: str, value: Any) -> bytes:
    """Append a field that a body does not have; all other bytes stay the same."""
    end = body.rindex(b"}")
    return body[:end] + b',"%b":' % name.encode() + json_values.dumps(value) + body[end:]


def _depth(value: Any) -> int:
    """Nesting of lists and objects."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = [i for v in level for i in (v.values() if isinstance(v, dict) else v)]
        level = [i for i in inner if isinstance(i, dict | list)]
    return depth


def _with_usage(fields: dict[str, Any], body: bytes, write: json_values.Write) -> tuple[bytes, bool]:
    """The body, which keeps one of each key, with `stream_options.include_usage`, and whether it is not the client's.

    Then `continuous_usage_stats` is dropped: it would add usage to the chunks of a client that did not ask for it.
    """
    if "stream_options" not in fields:
        return _append(body, "stream_options", {"include_usage": True}), True
    options = {} if fields["stream_options"] is None else fields["stream_options"]
    if not isinstance(options, dict):
        return body, True
    if to_bool(options.get("include_usage")) is True:
        return body, False
    kept = {k: v for k, v in options.items() if k != "continuous_usage_stats"}
    return write({**fields, "stream_options": {**kept, "include_usage": True}}), True


_NUMBERS = ("temperature", "top_p", "top_k", "n")
_COMPLETIONS = "/v1/completions"
_LIMITS = {_CHAT: LIMITS[:2], RESPONSES: ("max_output_tokens",)}
"""Limits of the output tokens by path, the one that counts first; elsewhere `max_tokens`."""
_DEFAULT_COMPLETION = 16.0
"""Output tokens of `/v1/completions` without a limit."""


def _sampling(path: str, fields: dict[str, Any]) -> dict[str, float]:
    """The numeric sampling fields that are present, and the limit of the output tokens."""
    names = _LIMITS.get(path, ("max_tokens",))
    limit = next((name for name in names if fields.get(name) is not None), names[-1])
    found = {
        name: number
        for name in (*_NUMBERS, limit)
        if (value := fields.get(name)) is not None and (number := to_number(value)) is not None
    }
    if path == _COMPLETIONS and fields.get(limit) is None:
        found[limit] = _DEFAULT_COMPLETION
    return found


ASKS: dict[str, Callable[[Any], object]] = {
    "min_p": lambda value: (to_number(value) or 0.0) > _MIN_P,
    **dict.fromkeys(("logit_bias", "structured_outputs", "prompt_logprobs", "logits_processors", "bad_words"), bool),
    **dict.fromkeys(("tools", "allowed_token_ids", "vllm_xargs", "kv_transfer_params", "prompt_embeds"), bool),
    "response_format": lambda value: _is_format(value),
    **dict.fromkeys(("text", "output_config"), lambda value: _is_format(value, "format")),
    "use_beam_search": lambda value: to_bool(value) is True,
}
"""Fields that not every engine takes, and whether a value asks for anything."""
_MIN_P = 1e-5  # as vLLM
_ASKS = frozenset(ASKS)
_NO_ASKS: frozenset[str] = frozenset()
_SPECIAL = _ASKS | {"n", "best_of", "conversation", "prompt_cache_key"}
"""Fields that `_num_answers`, `_structured`, `_asks` and `_session` read: one without them asks for one answer, of any
form, outside a session."""


def _asks(fields: dict[str, Any], found: set[str]) -> frozenset[str]:
    """What the request asks for that not every engine takes; `found`: modalities of its content."""
    return frozenset(found).union(name for name in _ASKS.intersection(fields) if ASKS[name](fields[name]))


def _num_answers(path: str, fields: dict[str, Any]) -> int:
    """Sequences that the engine decodes: `n` (or `best_of`) for each prompt; at least 2 in a beam search."""
    if path in (RESPONSES, MESSAGES):
        return 1
    prompt = fields.get("prompt")
    beams = 2 if to_bool(fields.get("use_beam_search")) else 1
    each = max(_count(fields.get("n")), _count(fields.get("best_of")), beams)
    several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)  # a list of numbers is one prompt
    return each * (len(prompt) if several and isinstance(prompt, list) else 1)


_MOST_ANSWERS = 1e6


def _count(value: Any) -> int:
    """A count as the engine reads it, up to a number that each rejects; 1 for anything else."""
    return int(min(max(to_number(value) or 1, 1), _MOST_ANSWERS))


_FORMATS = ("response_format", "text", "output_config", "structured_outputs", "tools")


def _structured(fields: dict[str, Any]) -> bool:
    """True if a field of OpenAI, Anthropic or vLLM prescribes the answer's format."""
    return any(ASKS[name](fields[name]) for name in _FORMATS if name in fields)


def _is_format(value: Any, field: str = "") -> bool:
    """True if a format, or that in a field of `value`, is more than text."""
    if field:
        value = value.get(field) if isinstance(value, dict) else None
    return isinstance(value, dict) and value.get("type") not in (None, "text")


def truncate(text: str, max_chars: int = MAX_TEXT_CHARS) -> str:
    """Keep the beginning and the end of a long prompt, where the instruction usually is."""
    if len(text) <= max_chars:
        return text
    half = max_chars // 2
    return text[:half] + "\n" + text[-half:]


def _content(content: Any, found: set[str]) -> str:
    """Text of a message's content: a string, or a list of parts; adds the modalities of other parts to `found`."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(text for part in content if isinstance(part, dict) and (text := _part(part, found)))


def _part(part: dict[str, Any], found: set[str]) -> str:
    """Text of a part of a message: its own, or that of a tool's result."""
    text = part.get("text")
    if isinstance(text, str):
        return text
    kind = part.get("type")
    if isinstance(kind, str):
        found.update(modality for modality in _MODALITIES if modality in kind)
    # One level: nesting is the client's choice.
    inner = part.get("content")
    if isinstance(inner, list):
        return "\n".join(p["text"] for p in inner if isinstance(p, dict) and isinstance(p.get("text"), str))
    return inner if isinstance(inner, str) else ""


_MODALITIES = ("image", "audio", "video", "file")


def _messages_text(messages: Any, found: set[str]) -> str:
    if not isinstance(messages, list):
        return ""
    return "\n".join(t for m in messages if isinstance(m, dict) and (t := _content(m.get("content"), found)))


def _chat_prompt(fields: dict[str, Any], found: set[str]) -> tuple[str, None]:
    return _messages_text(fields.get("messages"), found), None


def _completion_prompt(fields: dict[str, Any], found: set[str]) -> tuple[str, int | None]:
    prompt = fields.get("prompt")
    if isinstance(prompt, str):
        return prompt, None
    if not isinstance(prompt, list):
        return "", None
    text = "\n".join(p for p in prompt if isinstance(p, str))
    if text or not prompt:
        return text, None
    lists = [p for p in prompt if isinstance(p, list)]
    return "", max(map(len, lists)) if lists else len(prompt)


def _responses_prompt(fields: dict[str, Any], found: set[str]) -> tuple[str, None]:
    given, instructions = fields.get("input"), fields.get("instructions")
    text = given if isinstance(given, str) else _messages_text(given, found)
    return f"{instructions}\n{text}" if isinstance(instructions, str) and instructions else text, None


def _anthropic_prompt(fields: dict[str, Any], found: set[str]) -> tuple[str, None]:
    system, text = _content(fields.get("system"), found), _messages_text(fields.get("messages"), found)
    return f"{system}\n{text}" if system else text, None


_TEXT_READERS: dict[str, Callable[[dict[str, Any], set[str]], tuple[str, int | None]]] = {
    _CHAT: _chat_prompt,
    "/v1/completions": _completion_prompt,
    RESPONSES: _responses_prompt,
    MESSAGES: _anthropic_prompt,
}
"""By path: the prompt's text, and the number of its tokens if it consists of token ids."""
_USAGE_PATHS = frozenset({_CHAT, "/v1/completions"})
