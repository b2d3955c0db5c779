"""A request on its way: as the application took it, where its answer goes, and what is known of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from draftpick.engines.http.client import Headers
from draftpick.engines.replicas import Replica
from draftpick.router import headers
from draftpick.router.config.sections import Objective
from draftpick.router.errors import TimedOut
from draftpick.router.openai_request import Request
from draftpick.router.request.stream_resume import StreamResume
from draftpick.router.telemetry.tracing import Trace
from draftpick.router.types import Attempt, Context, Decision


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """A request as the ingress took it. Times are of `time.perf_counter()`.

    `accepted`: its first byte; `deadline`: the client waits no longer for the first byte of the answer. `key`: who
    asks; `explore`: whether its engine may be one that is tried out; `objective`: what its engine is chosen by, unless
    as configured; `count_tokens` is told of the tokens of its answers.
    """

    request: Request
    method: str
    target: str
    headers: Headers
    request_id: str
    accepted: float
    pin: str | None = None
    key: str = ""
    priority: int = 0
    deadline: float | None = None
    explore: bool = True
    objective: Objective | None = None
    count_tokens: Callable[[int], None] | None = None

    def remaining_s(self) -> float | None:
        """Seconds to the deadline, if there is one. Raises `TimedOut` when it has passed."""
        if self.deadline is None:
            return None
        left_s = self.deadline - time.perf_counter()
        if left_s <= 0:
            raise TimedOut("the deadline passed before an engine answered")
        return left_s


class ResponseSink(Protocol):
    """Where an answer goes."""

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers, once."""

    async def write(self, data: bytes) -> None:
        """Send a part of the body."""

    async def send_complete(self, status: int, headers: Headers, body: bytes) -> None:
        """Send all of an answer, with its content-length."""


UNDECIDED = Decision("", 0.0, {}, "")
"""The decision of a request that has none yet."""


@dataclass(slots=True)
class RequestState:
    """A request on its way: what it brought, what was found out about it, and the attempt that is under way.

    `prefix`: hashes of what its body begins with; `cached_prefix`: how many bytes of that each replica, by its address,
    has read before. `number`: of the attempt. `started`: bytes have gone to the client. `error_sent`: among them an
    error event of the engine's own. `retry_rounds`: how often all engines were tried in vain. `resume`: of a
    stream that another engine could go on with, what the client has. `last`: the last attempt that has ended.
    """

    client_request: ClientRequest
    trace: Trace | None = None
    context: Context | None = None
    prefix: Sequence[int] = ()
    cached_prefix: Mapping[str, int] = field(default_factory=dict)
    decision: Decision = UNDECIDED
    number: int = 1
    started: bool = False
    error_sent: bool = False
    retry_rounds: int = 0
    resume: StreamResume | None = None
    failed: set[str] = field(default_factory=set)
    tried: set[Replica] = field(default_factory=set)
    last: Attempt | None = None

    def own_headers(self) -> Headers:
        """What the answer says of how it was routed."""
        return [
            (headers.ARM, self.decision.arm),
            (headers.POLICY, self.decision.policy),
            (headers.REQUEST_ID, self.client_request.request_id),
            (headers.ATTEMPTS, str(self.number)),
        ]
