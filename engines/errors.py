"""Exceptions of the engines, one tree.

DraftpickError
├── ConfigError                  invalid configuration: field path, problem, fix
└── EngineError                  an engine did not answer as requested
    ├── EngineUnavailable        no replica, or the connection failed before the first byte
    │   └── EngineUnreachable    connection refused
    ├── EngineTimeout            no first byte in time
    └── StreamInterrupted        the answer broke off after its first byte
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


class EngineTimeout(EngineError):
    """No first byte arrived in time."""


class StreamInterrupted(EngineError):
    """The answer broke off after its first byte."""
