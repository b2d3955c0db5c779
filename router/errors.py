"""Errors visible to clients, in one tree; `draftpick.router.http.app` turns them into OpenAI error bodies.

RequestError           carries an HTTP status and an OpenAI error type
├── BadRequest         400, malformed request
├── Unauthorized       401, missing or unknown key
├── Forbidden          403, insufficient scope of the key
├── NotFound           404, no such model or stored response
├── NotAllowed         405, method not allowed
├── ReceiveTimedOut    408, the request did not come to its end in time
├── PayloadTooLarge    413, 414 or 431, body, URL or headers exceed their limit
├── UnsupportedEncoding  415, a body whose encoding is not read
├── RateLimited        429, the key has exceeded a limit per minute
├── NoEngineAvailable  503, no engine can serve the request
├── Overloaded         503, queue full, or waited too long in it
├── RegistryFailed     503, the policy registry is damaged, or its disk fails
├── TimedOut           504, the client's deadline has passed
└── EngineFailed       502 or 504, all attempts failed before the first byte
PolicyRejected         an artefact that this fleet cannot use
"""

import copyreg
import math
from collections.abc import Iterable
from typing import Any, Literal

from draftpick.engines.errors import DraftpickError
from draftpick.engines.http.client import Headers


class RequestError(DraftpickError):
    """An error with an HTTP status and an OpenAI error type."""

    status = 500
    type = "server_error"
    retry_after_s: float | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without calling the constructor: Ray pickles the errors that it raises to callers by handle."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    def headers(self) -> Headers:
        """Additional response headers."""
        return [] if self.retry_after_s is None else [("retry-after", str(max(1, math.ceil(self.retry_after_s))))]

    def body(self) -> dict[str, object]:
        """The OpenAI error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class BadRequest(RequestError):
    """The request is malformed."""

    status, type = 400, "invalid_request_error"


class Unauthorized(RequestError):
    """The request has no API key, or an unknown one."""

    status, type = 401, "authentication_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="invalid_api_key")

    def headers(self) -> Headers:
        return [("www-authenticate", "Bearer")]


class Forbidden(RequestError):
    """The key lacks the required scope."""

    status, type = 403, "permission_error"


class NotFound(RequestError):
    """What is asked for does not exist."""

    status, type = 404, "not_found_error"


class NotAllowed(RequestError):
    """The method is not allowed."""

    status, type = 405, "invalid_request_error"

    def __init__(self, message: str, *, code: str = "method_not_allowed", allowed: Iterable[str] = ()) -> None:
        super().__init__(message, code=code)
        self.allowed = sorted(allowed)

    def headers(self) -> Headers:
        return [("allow", ", ".join(self.allowed))] if self.allowed else []


class ReceiveTimedOut(RequestError):
    """The request did not come to its end in time."""

    status, type = 408, "invalid_request_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="request_timeout")


class PayloadTooLarge(RequestError):
    """Body, URL or headers exceed their limit."""

    type = "invalid_request_error"

    def __init__(self, message: str, *, code: Literal["body_too_large", "url_too_long", "headers_too_large"]) -> None:
        super().__init__(message, code=code)
        self.status = {"body_too_large": 413, "url_too_long": 414, "headers_too_large": 431}[code]


class UnsupportedEncoding(RequestError):
    """The encoding of a body is not read, or the body does not have it."""

    status, type = 415, "invalid_request_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="unsupported_encoding")

    def headers(self) -> Headers:
        return [("accept-encoding", "gzip, deflate")]


class RateLimited(RequestError):
    """The key has exceeded its requests or tokens per minute."""

    status, type = 429, "rate_limit_error"

    def __init__(self, message: str, *, code: str, retry_after_s: float) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class NoEngineAvailable(RequestError):
    """No engine can serve the request now."""

    status, type = 503, "service_unavailable_error"
    retry_after_s = 1.0


class Overloaded(RequestError):
    """The queue is full, or the request waited too long in it."""

    status, type = 503, "service_unavailable_error"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message, code="overloaded")
        self.retry_after_s = retry_after_s


class RegistryFailed(RequestError):
    """The policy registry is not readable or not writable."""

    status, type = 503, "service_unavailable_error"


class TimedOut(RequestError):
    """The client's deadline has passed."""

    status, type = 504, "timeout_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="deadline_exceeded")


class EngineFailed(RequestError):
    """All attempts failed before the first byte."""

    status, type = 502, "api_connection_error"
    retry_after_s = 1.0

    def __init__(self, message: str, *, timed_out: bool) -> None:
        super().__init__(message, code="engine_timeout" if timed_out else "engine_unavailable")
        self.status = 504 if timed_out else 502


class PolicyRejected(DraftpickError):
    """An artefact that is not readable, or does not fit this fleet."""
