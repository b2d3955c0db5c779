"""A request on its way: as the ingress took it, where its answer goes, and the attempt that is under way."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from engines.client import Headers
from engines.replicas import Replica
from router.continuation import Continuation
from router.errors import TimedOut
from router.openai import Request
from router.sections import Objective
from router.tracing import Trace
from router.types import Context, Decision, Outcome


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request as the ingress took it. Times are of `time.perf_counter()`.

    `accepted`: its first byte; `deadline`: the client waits no longer for the first byte of the answer. `key`: who
    asks; `explore`: whether its engine may be one that is tried out; `objective`: what its engine is chosen by, unless
    as configured; `charge` is told of the tokens of its answers.
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
    charge: Callable[[int], None] | None = None

    def left_s(self) -> float | None:
        """Seconds to the deadline, if there is one. Raises `TimedOut` when it has passed."""
        if self.deadline is None:
            return None
        left_s = self.deadline - time.perf_counter()
        if left_s <= 0:
            raise TimedOut("the deadline passed before an engine answered")
        return left_s


class Reply(Protocol):
    """Where an answer goes."""

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers, once."""

    async def write(self, data: bytes) -> None:
        """Send a part of the body."""

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send all of an answer, with its content-length."""


@dataclass(slots=True)
class Attempt:
    """An attempt under way, and what failed before it.

    `started`: bytes have gone to the client. `rounds`: how often all engines were tried in vain. `continuation`: of a
    stream that another engine could go on with, what the client has. `told`: the engine itself sent an error event.
    `read`: bytes of the request that each replica, by its address, has read before. `kind`: of the request, behind the
    id of the policy that tells kinds so apart, once an answer was learned from. `outcome`: of the last attempt that
    ended; `trace`: of the request, where it has one.
    """

    incoming: Incoming
    context: Context | None
    decision: Decision
    number: int = 1
    started: bool = False
    continuation: Continuation | None = None
    told: bool = False
    rounds: int = 0
    http_status: int | None = None
    read: Mapping[str, int] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    tried: set[Replica] = field(default_factory=set)
    kind: tuple[str, int] | None = None
    outcome: Outcome | None = None
    trace: Trace | None = None

    def own_headers(self) -> Headers:
        """What the answer says of how it was routed."""
        return [
            ("x-draftpick-arm", self.decision.arm),
            ("x-draftpick-policy", self.decision.policy),
            ("x-draftpick-request-id", self.incoming.request_id),
            ("x-draftpick-attempts", str(self.number)),
        ]
