"""Errors of the engines, one tree.

DraftpickError
├── ConfigError        wrong configuration: field path, what is wrong, the cure
└── EngineError        an engine did not answer as asked
    ├── EngineUnavailable   no replica, or a connection that failed before the first byte
    │   └── EngineUnreachable      nobody listens at its address
    ├── EngineTimeout       no first byte in time
    └── StreamInterrupted        the answer stopped after its first byte
"""


class DraftpickError(Exception):
    """Root of all errors that the project raises on purpose."""


class ConfigError(DraftpickError):
    """A wrong configuration: `field` is its path, `cure` says what to write instead."""

    def __init__(self, field: str, problem: str, fix: str = "") -> None:
        super().__init__(field, problem, fix)
        self.field, self.problem, self.fix = field, problem, fix

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}" + (f" ({self.fix})" if self.fix else "")


class EngineError(DraftpickError):
    """An engine did not answer as asked."""


class EngineUnavailable(EngineError):
    """No replica could be reached; nothing of the answer has been seen."""


class EngineUnreachable(EngineUnavailable):
    """Nobody listens at the engine's address."""


class EngineTimeout(EngineError):
    """No first byte came in time."""


class StreamInterrupted(EngineError):
    """The answer stopped after its first byte."""
