"""The state of a request: as received, the sink of its answer, and its attempts."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from draftpick.engines.http.client import Headers
from draftpick.engines.replicas import Lease, Replica
from draftpick.router.config.sections import Objective
from draftpick.router.errors import TimedOut
from draftpick.router.online.sessions import Session
from draftpick.router.openai_request import Request
from draftpick.router.request.ability import Rejection
from draftpick.router.request.stream_resume import StreamResume
from draftpick.router.telemetry.tracing import Trace
from draftpick.router.types import Attempt, Context, Decision, Turn


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """A request as received. Times are of `time.perf_counter()`.

    `accepted`: arrival of its last byte; `deadline`: for the first byte of the answer. `id`: made by the router, so
    that no client can give two requests one identity; `request_id`: for people: the client's own if it sent one, else
    the same. `key`: name of its API key, empty if all requests have one key; `explore`: whether exploration is allowed;
    `objective`: overrides the configured one; `show_routing`: whether the client is told the engine and the policy;
    `count_tokens`: called with the tokens of its answer at its end. `authorized`: the router has read its key, so that
    what an engine says of keys is not meant for it. `session`: its name in the header, which counts before one in the
    body.
    """

    request: Request
    method: str
    target: str
    headers: Headers
    id: str
    request_id: str
    accepted: float
    pin: str | None = None
    key: str = ""
    priority: int = 0
    deadline: float | None = None
    explore: bool = True
    objective: Objective | None = None
    show_routing: bool = True
    count_tokens: Callable[[int], None] | None = None
    authorized: bool = False
    session: str | None = None

    def remaining_s(self) -> float | None:
        """Seconds to the deadline, if any. Raises `TimedOut` if it has passed."""
        if self.deadline is None:
            return None
        left_s = self.deadline - time.perf_counter()
        if left_s <= 0:
            raise TimedOut("the deadline passed before an engine answered")
        return left_s


class ResponseSink(Protocol):
    """Destination of an answer."""

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers, once."""

    async def write(self, data: bytes) -> None:
        """Send a part of the body."""

    async def send_complete(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a complete answer, with its content-length."""


UNDECIDED = Decision("", 0.0, {}, "")
"""Placeholder before the first decision."""


@dataclass(slots=True)
class RequestState:
    """A request, its context, and the current attempt.

    `prefix`: hashes of the leading blocks of its body; `cached_prefix`: bytes of it that each replica, by address, has
    read before. `number`: of the attempt. `started`: content was sent to the client; `opened_by`: number of the
    attempt whose status and headers were, or 0. `error_sent`: they include an error
    event of the engine. `num_events`: events of the last attempt. `retry_rounds`: how often all engines were tried in
    vain. `resume`: the text that the client has, of a stream that can be resumed. `last`: the last finished attempt.
    `num_tokens`: prompt and output tokens of the attempts that answered. `retry_until`: time at which retries end, set
    by the first. `failed`: engines, and `tried`: replicas of earlier attempts. `doubts`: replicas that failed, unless
    the request is at fault. `unable`: reasons by engine that cannot take it; `rejections`: what engines said so.
    `outside`: replicas that the request may not use. `session`, `turn`: None without a session. `adapter`: of
    the target that it asks for.
    """

    client_request: ClientRequest
    trace: Trace | None = None
    context: Context | None = None
    prefix: Sequence[int] = ()
    cached_prefix: Mapping[str, int] = field(default_factory=dict)
    decision: Decision = UNDECIDED
    number: int = 1
    started: bool = False
    opened_by: int = 0
    error_sent: bool = False
    num_events: int = 0
    retry_rounds: int = 0
    resume: StreamResume | None = None
    failed: set[str] = field(default_factory=set)
    tried: set[Replica] = field(default_factory=set)
    last: Attempt | None = None
    num_tokens: int = 0
    retry_until: float | None = None
    doubts: list[Lease] = field(default_factory=list)
    unable: Mapping[str, str] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    outside: frozenset[Replica] = frozenset()
    session: Session | None = None
    turn: Turn | None = None
    adapter: str = ""

    def forget_tried(self) -> None:
        """Let all replicas be tried again, but those `outside` of what the request may use."""
        self.tried = set(self.outside)

    def settle_doubts(self, *, blame: bool) -> None:
        """Report the failures in doubt to the circuit breakers, or (`blame` is False) forget them."""
        doubts, self.doubts = self.doubts, []
        if blame:
            for lease in doubts:
                lease.replica.breaker.end(ok=False, probe=lease.probe)
