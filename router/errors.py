"""Errors that a client sees, one tree; `draftpick.router.http.app` turns them into OpenAI error bodies in one place.

RequestError           carries an HTTP status and an OpenAI error type
├── BadRequest         400, the request cannot be read
├── Unauthorized       401, no key that is known here
├── Forbidden          403, the key may not do this
├── NotAllowed         405, a method that is not forwarded
├── PayloadTooLarge           413 or 431, body or headers are larger than allowed
├── RateLimited        429, the key has used up its minute
├── NoEngineAvailable           503, no engine can take the request
├── Overloaded         503, too many requests wait already
├── RegistryFailed     503, the registry of policies is damaged, or its disk fails
├── TimedOut           504, the client's own deadline has passed
└── EngineFailed       502 or 504, all attempts failed before the first byte
PolicyRejected          an artefact that this fleet cannot use
"""

import copyreg
import math
from typing import Any

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
        """As it is, whatever its constructor asks for: Ray pickles what it raises to those who call by handle."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    def headers(self) -> Headers:
        """Headers beside those of the body."""
        return [] if self.retry_after_s is None else [("retry-after", str(max(1, math.ceil(self.retry_after_s))))]

    def body(self) -> dict[str, object]:
        """The OpenAI error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class BadRequest(RequestError):
    """The request cannot be read."""

    status, type = 400, "invalid_request_error"


class Unauthorized(RequestError):
    """No key came along, or none that is known here."""

    status, type = 401, "authentication_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="invalid_api_key")

    def headers(self) -> Headers:
        return [("www-authenticate", "Bearer")]


class Forbidden(RequestError):
    """The key may not do this."""

    status, type = 403, "permission_error"


class NotAllowed(RequestError):
    """A method that is not forwarded."""

    status, type = 405, "invalid_request_error"


class PayloadTooLarge(RequestError):
    """Body or headers are larger than allowed."""

    status, type = 413, "invalid_request_error"

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message, code=code)
        self.status = 431 if code == "headers_too_large" else 413


class RateLimited(RequestError):
    """The key has used up its requests or tokens of the minute."""

    status, type = 429, "rate_limit_error"

    def __init__(self, message: str, *, code: str, retry_after_s: float) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class NoEngineAvailable(RequestError):
    """No engine can take the request now."""

    status, type = 503, "service_unavailable_error"


class Overloaded(RequestError):
    """Too many requests wait already, or this one waited too long."""

    status, type = 503, "service_unavailable_error"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message, code="overloaded")
        self.retry_after_s = retry_after_s


class RegistryFailed(RequestError):
    """The registry of policies cannot be read or changed."""

    status, type = 503, "service_unavailable_error"


class TimedOut(RequestError):
    """The client's own deadline has passed."""

    status, type = 504, "timeout_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="deadline_exceeded")


class EngineFailed(RequestError):
    """All attempts failed before the first byte."""

    status, type = 502, "api_connection_error"

    def __init__(self, message: str, *, timed_out: bool) -> None:
        super().__init__(message, code="engine_timeout" if timed_out else "engine_unavailable")
        self.status = 504 if timed_out else 502


class PolicyRejected(DraftpickError):
    """An artefact that cannot be read, or that does not fit this fleet."""
