"""Requests of OpenAI's Batch API: `custom_id`, `method`, `url`, `body`."""

from draftpick.policy_training.workloads.files.conversation import Unusable
from draftpick.policy_training.workloads.files.formats import Fields, Format, required

_NAME = "OpenAI batch JSONL"
_MAX_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def _convert(row: Fields) -> Fields:
    """A prompt of `/v1/completions` and an input of `/v1/responses` become a user turn."""
    body, url = required(row, "body", dict, _NAME), row.get("url", "/v1/chat/completions")
    match url:
        case "/v1/chat/completions":
            messages = required(body, "messages", list, _NAME)
        case "/v1/completions":
            messages = [{"role": "user", "content": required(body, "prompt", str, _NAME)}]
        case "/v1/responses":
            messages = _of_response(body)
        case _:
            raise Unusable(f"request to {url}")
    sampling = {name: body[name] for name in ("temperature", "top_p") if body.get(name) is not None}
    length = next((body[name] for name in _MAX_TOKENS if body.get(name) is not None), None)
    shared: Fields = {name: row[name] for name in ("kind", "source", "language", "split") if name in row}
    return {"id": row.get("custom_id"), "messages": messages, "max_tokens": length, **shared, **sampling}


def _of_response(body: Fields) -> list[Fields]:
    asked = body.get("input")
    messages = asked if isinstance(asked, list) else [{"role": "user", "content": required(body, "input", str, _NAME)}]
    said = body.get("instructions")
    return [*([{"role": "system", "content": said}] if said else []), *messages]


OPENAI_BATCH = Format(_NAME, lambda row: "body" in row and ("custom_id" in row or "url" in row), _convert)
