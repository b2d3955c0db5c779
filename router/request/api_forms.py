"""How the clients of each API are told of an error: as a complete answer, and as the last event of a stream."""

from collections.abc import Mapping
from typing import Any

from draftpick.engines.http.json_values import dumps, parse_object
from draftpick.router.errors import RequestError

CONTENT = ("choices", "output", "content")
"""Fields of an answer, of which it has one."""
_MESSAGES, _RESPONSES = "/v1/messages", "/v1/responses"
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_STATUSES = {
    **{kind: status for status, kind in _ANTHROPIC_TYPES.items()},
    "BadRequestError": 400,
    "invalid_prompt": 400,
    "NotFoundError": 404,
    "UnprocessableEntityError": 422,
    "rate_limit_exceeded": 429,
    "NotImplementedError": 501,
    "ServiceUnavailableError": 503,
}
"""HTTP status by an error's type or code in words; of all others, 500."""


def error_body(path: str, error: RequestError) -> dict[str, object]:
    """The body of an error of the router itself."""
    if path.startswith(_MESSAGES):
        kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}}
    return error.body()


def error_event(path: str, message: str, code: str, num_events: int) -> bytes:
    """The last event of a stream that ends early. `num_events`: sent before it, which `/v1/responses` numbers."""
    error: dict[str, object] = {"message": message, "type": "api_connection_error", "param": None, "code": code}
    if path.startswith(_MESSAGES):
        data: dict[str, object] = {"type": "error", "error": {"type": "api_error", "message": message}}
    elif path.startswith(_RESPONSES):
        # OpenAI's clients raise for `error`; others know the event by its type.
        data = {**error, "type": "error", "sequence_number": num_events, "error": error}
    else:
        return b"data: %b\n\n" % dumps({"error": error})
    return b"event: error\ndata: %b\n\n" % dumps(data)


def body_as_event(path: str, body: object, num_events: int) -> bytes:
    """The last event of a stream for an engine's error that came as a complete answer, after the stream was opened."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return error_event(path, "the engine failed", "engine_failed", num_events)
    if path.startswith((_MESSAGES, _RESPONSES)):
        return error_event(path, str(error.get("message")), str(error.get("code")), num_events)
    return b"data: %b\n\n" % dumps({"error": error})


def read_error_event(event: bytes) -> tuple[int, bytes]:
    """HTTP status and body that an engine means by an error event, or by a failed response."""
    fields = parse_object(event.partition(b"data:")[2]) or {}
    response = fields.get("response")
    told = response if isinstance(response, dict) else fields
    if isinstance(error := told.get("error"), dict):
        return error_status(error), dumps(fields)
    # `/v1/responses`, and older engines, have no object around it.
    found = {name: fields.get(name) for name in ("message", "type", "param", "code")}
    found["message"] = (error if isinstance(error, str) else found["message"]) or "the engine failed"
    return error_status(found), dumps({"error": found})


def told_error(answer: object) -> Mapping[str, Any] | None:
    """The error object of an answer, or of an event, that tells one; None for any other."""
    if not isinstance(answer, dict):
        return None
    error = answer.get("error")
    if isinstance(error, dict):
        return error
    if isinstance(error, str) and error:
        return {"message": error}
    return answer if "error" in (answer.get("object"), answer.get("type")) else None


def error_status(error: Mapping[str, Any]) -> int:
    """HTTP status of an engine's error object: its code, or that of its type."""
    code = error.get("code")
    if isinstance(code, str) and code.isascii() and code.isdigit():
        code = int(code)
    if isinstance(code, int) and not isinstance(code, bool):
        return code if 400 <= code <= 599 else 500
    return _STATUSES.get(str(code), _STATUSES.get(str(error.get("type")), 500))
