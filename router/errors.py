"""Errors that a client sees, one tree; `router.ingress` turns them into OpenAI error bodies in one place.

RequestError           carries an HTTP status and an OpenAI error type
├── BadRequest         400, the request cannot be read
├── TooLarge           413, the body is larger than `router.max_body_bytes`
├── NoEngine           503, no engine can take the request
└── EngineFailed       502 or 504, all attempts failed before the first byte
PolicyRefused          an artefact that this fleet cannot use
"""

from engines.errors import DraftpickError


class RequestError(DraftpickError):
    """An error with an HTTP status and an OpenAI error type."""

    status = 500
    type = "server_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code

    def body(self) -> dict[str, object]:
        """The OpenAI error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class BadRequest(RequestError):
    """The request cannot be read."""

    status, type = 400, "invalid_request_error"


class TooLarge(RequestError):
    """The body is larger than allowed."""

    status, type = 413, "invalid_request_error"


class NoEngine(RequestError):
    """No engine can take the request now."""

    status, type = 503, "service_unavailable_error"


class EngineFailed(RequestError):
    """All attempts failed before the first byte."""

    status, type = 502, "api_connection_error"

    def __init__(self, message: str, *, timed_out: bool) -> None:
        super().__init__(message, code="engine_timeout" if timed_out else "engine_unavailable")
        self.status = 504 if timed_out else 502


class PolicyRefused(DraftpickError):
    """An artefact that cannot be read, or that does not fit this fleet."""
