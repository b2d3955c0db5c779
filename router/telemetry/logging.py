"""Logging: all messages go to the logger `draftpick`, with the id of the current request.

On Ray Serve its own handlers write them (see its LoggingConfig), elsewhere the handler of `configure`: a line of text,
or of JSON with the fields of a record's `extra`. Request text and keys are never logged.
"""

import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from draftpick.router.config.sections import LogsConfig

if TYPE_CHECKING:
    from draftpick.router.types import Decision, Outcome

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the current task's request."""
_STANDARD = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"))
_OURS, _SERVE = "draftpick", "ray.serve"

requests = logging.getLogger("draftpick.requests")


def configure(config: LogsConfig) -> None:
    """Log to stderr in a process without Ray: the router's messages, and warnings of other packages."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if config.format == "json" else TextLines())
    handler.addFilter(_with_request)
    logging.getLogger().addHandler(handler)
    logging.getLogger(_OURS).setLevel(logging.INFO)


def configure_in_serve() -> None:
    """Log through Serve's own handlers, in a replica."""
    handler, ours = _ToServe(), logging.getLogger(_OURS)
    handler.addFilter(_with_request)
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)


def _with_request(record: logging.LogRecord) -> bool:
    """Add the request id to a log record without one."""
    if (request_id := REQUEST_ID.get()) is not None and not hasattr(record, "draftpick_request_id"):
        record.draftpick_request_id = request_id
    return True


class _ToServe(logging.Handler):
    """Passes log records to Serve's current handlers, at its current level."""

    def emit(self, record: logging.LogRecord) -> None:
        serve = logging.getLogger(_SERVE)
        if serve.isEnabledFor(record.levelno):
            serve.handle(record)


class JsonLines(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, the fields of `extra`, and an error's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class TextLines(logging.Formatter):
    """Time, level, logger and message, followed by the fields of `extra` as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # its name in the standard library
        return " ".join([super().formatMessage(record), *(f"{k}={v}" for k, v in _extra(record).items())])


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """The `extra` fields of a log record; Ray marks its own with an underscore."""
    given = vars(record).items()
    return {k: v for k, v in given if k not in _STANDARD and not k.startswith("_") and v is not None}


def request_ended(
    request_id: str,
    path: str,
    stream: bool,
    decision: "Decision | None",
    attempts: int,
    outcome: "Outcome | None",
    error: BaseException | None,
) -> None:
    """Log a finished request. `decision`, `outcome`: of its last attempt, if any."""
    fields: dict[str, Any] = {"path": path, "stream": stream}
    if decision is not None and outcome is not None:
        fields |= {"arm": decision.arm, "reason": decision.reason, "policy": decision.policy}
        fields |= {"attempts": attempts, "status": outcome.status, "http_status": outcome.http_status}
        fields |= {"overhead_s": outcome.overhead_s, "queue_s": outcome.queue_s, "ttft_s": outcome.ttft_s}
        fields |= {"tpot_s": outcome.tpot_s, "e2e_s": outcome.e2e_s, "acceptance_length": outcome.acceptance_length}
        fields |= {"prompt_tokens": outcome.prompt_tokens, "output_tokens": outcome.output_tokens}
    if error is not None:
        fields["error_type"] = type(error).__name__
    requests.info("request ended", extra={"draftpick_request_id": request_id, **fields})
