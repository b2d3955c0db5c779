"""Whose fault the end of an attempt is, and what follows from it: decided here, for every ending.

Circuit breakers, retries, records, metrics and the errors that clients get all follow the `Verdict`. A client's
request, haste or silence says nothing about an engine, nor does a lack of descriptors in this process.
"""

from dataclasses import dataclass

from draftpick.engines.errors import (
    AnswerTooLong,
    ConnectTimeout,
    EngineError,
    EngineTimeout,
    EngineUnreachable,
    RequestNotSendable,
    ResourcesExhausted,
    StreamInterrupted,
)
from draftpick.engines.reporting.report import Failure
from draftpick.router.types import Fault, Status

_TOO_MANY_REQUESTS, _INTERNAL_ERROR, _NOT_IMPLEMENTED = 429, 500, 501
_OF_CONNECTIONS = frozenset({408, 421, 425})
"""The request did not come in time, came to another server, or too early: clients send such again."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an attempt ended, and whose `fault` that is.

    `retry`: another engine may answer the request, unless content was sent. `healthy`: what the replica's circuit
    breaker learns: True, False, or None if the end says nothing about it. `doubtful`: only if another engine answers
    the same request is it the engine's fault. `unreachable`: the replica accepts no connection.
    """

    status: Status
    fault: Fault | None = None
    retry: bool = False
    healthy: bool | None = None
    doubtful: bool = False
    unreachable: bool = False


OK = Verdict("ok", healthy=True)
REJECTED = Verdict("client_error", "client", healthy=True)
"""The engine rejects the request, and is well."""
CANCELLED = Verdict("cancelled", "client")
NO_REPLICA = Verdict("engine_error", "engine", retry=True)
RESUME_REJECTED = Verdict("router_error", "router", retry=True)
"""The router cannot ask this engine for the rest of a stream."""
BROKEN = Verdict("broken", "engine", retry=True, healthy=False)
_FAILED = Verdict("engine_error", "engine", retry=True, healthy=False)
CRASHED = Verdict("engine_error", "engine", retry=True, doubtful=True)
_UNREACHABLE = Verdict("engine_error", "network", retry=True, unreachable=True)
_NOT_CONNECTED = Verdict("timeout", "network", retry=True, healthy=False)
_SILENT = Verdict("timeout", "engine", retry=True, healthy=False)
_SILENT_WHOLE = Verdict("timeout", "engine", healthy=False)
_LONG_WHOLE = Verdict("timeout", "client")
_HASTY = Verdict("timeout", "client", retry=True)
_TOO_LONG = Verdict("broken", "client")
_NOT_SENDABLE = Verdict("client_error", "client")
ROUTER_FAILED = Verdict("router_error", "router")


def judge_status(status: int) -> Verdict:
    """The verdict on an answer by its HTTP status, or on an error event by the code in it."""
    if status < 400:
        return OK
    if status == _INTERNAL_ERROR or status in _OF_CONNECTIONS:
        return CRASHED
    if status == _TOO_MANY_REQUESTS or (status > _INTERNAL_ERROR and status != _NOT_IMPLEMENTED):
        return _FAILED
    return REJECTED


def judge_error(error: EngineError, *, stream: bool, hasty: bool, alive: bool, slow: bool = False) -> Verdict:
    """The verdict on an attempt without a complete answer.

    `hasty`: it had less time than the configuration gives an engine. `alive`: the replica answered others meanwhile, so
    that an answer that takes too long is a long one. `slow`: but other engines would not take so long.
    """
    match error:
        case ResourcesExhausted():
            return ROUTER_FAILED
        case RequestNotSendable():
            return _NOT_SENDABLE
        case EngineUnreachable():
            return _UNREACHABLE
        case AnswerTooLong():
            return BROKEN if slow else _TOO_LONG
        case StreamInterrupted():
            return BROKEN
        case ConnectTimeout():
            return _NOT_CONNECTED
        case EngineTimeout() if hasty:
            return _HASTY
        case EngineTimeout():
            return _SILENT if stream or slow else _LONG_WHOLE if alive else _SILENT_WHOLE
        case _:
            return _FAILED


def judge_broken_event(status: int) -> Verdict:
    """The verdict on a stream with content that ends with an error event of this code."""
    if judge_status(status).fault == "client":
        return Verdict("broken", "client")
    return BROKEN


def judge_report(
    status: int | None, error: Failure | None, *, stream: bool, hasty: bool, alive: bool, slow: bool = False
) -> Verdict:
    """The verdict on an attempt whose end is told, not seen: see `draftpick.engines.reporting.report.OutcomeReport`.

    `hasty`, `alive`: as in `judge_error`.
    """
    match error:
        case "cancelled":
            return CANCELLED
        case "unreachable":
            return _UNREACHABLE
        case "timeout":
            return judge_error(EngineTimeout("told"), stream=stream, hasty=hasty, alive=alive, slow=slow)
        case "broken":
            return BROKEN if status is None or status < 400 else judge_broken_event(status)
    return OK if status is None else judge_status(status)
