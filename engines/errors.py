"""Exceptions of the engines, one tree.

DraftpickError
├── ConfigError                  invalid configuration: field path, problem, fix
└── EngineError                  an engine did not answer as requested
    ├── EngineUnavailable        no replica, or the connection failed before the first byte
    │   ├── EngineUnreachable    connection refused
    │   └── ConnectionLost       closed by the engine without a byte of an answer
    ├── EngineTimeout            no first byte in time
    │   └── ConnectTimeout       no connection in time
    ├── StreamInterrupted        the answer broke off after its first byte
    │   └── AnswerTooLong        the answer takes longer than any may
    ├── RequestNotSendable       the request cannot be written as HTTP
    └── ResourcesExhausted       this process has no descriptors, ports or memory for a connection
"""


class DraftpickError(Exception):
    """Root of all exceptions that the project raises on purpose."""


class ConfigError(DraftpickError):
    """Invalid configuration: `field` is its path, `fix` the suggested correction."""

    def __init__(self, field: str, problem: str, fix: str = "") -> None:
        super().__init__(field, problem, fix)
        self.field, self.problem, self.fix = field, problem, fix

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}" + (f" ({self.fix})" if self.fix else "")


class EngineError(DraftpickError):
    """An engine did not answer as requested."""


class EngineUnavailable(EngineError):
    """No replica is available; no part of the answer has arrived."""


class EngineUnreachable(EngineUnavailable):
    """The engine's address refuses connections."""


class ConnectionLost(EngineUnavailable):
    """The engine closed the connection without a byte of an answer."""


class EngineTimeout(EngineError):
    """No first byte arrived in time."""


class ConnectTimeout(EngineTimeout):
    """No connection was made in time."""


class StreamInterrupted(EngineError):
    """The answer broke off after its first byte."""


class AnswerTooLong(StreamInterrupted):
    """The answer takes longer than any may: it was cut off here, not by the engine."""


class RequestNotSendable(EngineError):
    """The request cannot be written as HTTP."""


class ResourcesExhausted(EngineError):
    """This process has no file descriptors, ports or memory left for a connection."""
