"""Request headers that the router itself reads; a new one is an entry of `REQUEST_HEADERS`."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from draftpick.router import headers
from draftpick.router.errors import BadRequest
from draftpick.router.http.auth import Key, Scope
from draftpick.router.request.admission import PRIORITIES

_NAME = re.compile(r"[\w.:/@=+-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """One header.

    `field`: the field of `ClientRequest` that `parse` computes from the header's text, the client's key and the arrival
    time of the request (`time.perf_counter()`); `parse` may raise `BadRequest`. `scope`: the required scope if keys are
    configured. `description`: for the OpenAPI document.
    """

    name: str
    description: str
    field: str
    parse: Callable[[str, Key, float], object]
    scope: Scope | None = None


def parse_seconds(text: str) -> float | None:
    """A positive number of seconds; None for any other text."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def _arm(text: str, key: Key, accepted: float) -> str:
    return text


def _deadline(text: str, key: Key, accepted: float) -> float:
    if (seconds := parse_seconds(text)) is None:
        raise BadRequest("must be a positive number of seconds", param=headers.TIMEOUT, code="bad_timeout")
    return accepted + seconds


def _priority(text: str, key: Key, accepted: float) -> int:
    """The requested priority, limited to that of the key."""
    if text not in PRIORITIES:
        raise BadRequest(f"must be one of: {', '.join(PRIORITIES)}", param=headers.PRIORITY, code="bad_priority")
    return min(PRIORITIES[text], PRIORITIES[key.priority])


def _session(text: str, key: Key, accepted: float) -> str:
    if _NAME.fullmatch(text) is None:
        wanted = "1 to 128 letters, digits or . : / @ = + - _, such as a random id for each conversation"
        raise BadRequest(f"must be {wanted}", param=headers.SESSION, code="bad_session")
    return text


def client_request_id(text: str) -> str | None:
    """The client's id if it is fit for logs; else None, and the router creates one."""
    return text if _NAME.fullmatch(text) else None


def _request_id(text: str, key: Key, accepted: float) -> str | None:
    return client_request_id(text)


REQUEST_HEADERS = (
    RequestHeader(
        headers.ARM,
        "Pins the engine; needs the scope `admin` if keys are configured.",
        "pin",
        _arm,
        scope="admin",
    ),
    RequestHeader(headers.TIMEOUT, "Timeout for the first byte, in seconds.", "deadline", _deadline),
    RequestHeader(
        headers.PRIORITY,
        "`low`, `normal` or `high`: order in the queue, and of rejection under overload.",
        "priority",
        _priority,
    ),
    RequestHeader(
        headers.SESSION,
        "Names the session of which the request is a turn: 1 to 128 letters, digits or `.:/@=+-_`.",
        "session",
        _session,
    ),
    RequestHeader(
        headers.CLIENT_REQUEST_ID,
        f"Request id for logs, traces and records: returned as {headers.REQUEST_ID}.",
        "request_id",
        _request_id,
    ),
)
SCOPED_HEADERS = tuple((header.name, header.scope) for header in REQUEST_HEADERS if header.scope is not None)
"""Required scope by header, for restricted headers."""
