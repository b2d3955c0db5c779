"""Headers that clients may send to the router itself: a new one is an entry of `REQUEST_HEADERS`."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from draftpick.router import headers
from draftpick.router.errors import BadRequest
from draftpick.router.http.auth import Key, Scope
from draftpick.router.request.admission import PRIORITIES

_REQUEST_ID = re.compile(r"[\w.:/@=+-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """One header.

    `field`: of `ClientRequest`, that `parse` makes of the header's text, the client's key and the time that the request
    came (`time.perf_counter()`), or raises `BadRequest`. `scope`: that a key needs to send it, where keys are
    configured. `description`: in the OpenAPI document.
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
    """At most the key's own."""
    if text not in PRIORITIES:
        raise BadRequest(f"must be one of: {', '.join(PRIORITIES)}", param=headers.PRIORITY, code="bad_priority")
    return min(PRIORITIES[text], PRIORITIES[key.priority])


def _request_id(text: str, key: Key, accepted: float) -> str | None:
    """The client's own, where logs can hold it; else it gets a new one."""
    return text if _REQUEST_ID.fullmatch(text) else None


REQUEST_HEADERS = (
    RequestHeader(
        headers.ARM,
        "The engine that shall answer; needs the scope `admin` where keys are configured.",
        "pin",
        _arm,
        scope="admin",
    ),
    RequestHeader(headers.TIMEOUT, "Seconds that the client waits for the first byte.", "deadline", _deadline),
    RequestHeader(
        headers.PRIORITY,
        "`low`, `normal` or `high`: who waits, and who is rejected first, under overload.",
        "priority",
        _priority,
    ),
    RequestHeader(
        headers.CLIENT_REQUEST_ID,
        f"Comes back as {headers.REQUEST_ID}, and stands in the records.",
        "request_id",
        _request_id,
    ),
)
SCOPED_HEADERS = tuple((header.name, header.scope) for header in REQUEST_HEADERS if header.scope is not None)
"""Those that not every key may send, with the scope that it needs."""
