"""What a router logs, and in which form. Request ids stand beside what is said while a request is worked on.

Everything is said under the logger `draftpick`. On Ray Serve its own handlers write it (its LoggingConfig says how),
elsewhere the one that `configure` makes: a line of text, or of JSON with the fields of a record's `extra`. No text of a
request and no key is ever logged.
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
"""Of the request that the present task works on."""
_STANDARD = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"))
_OURS, _SERVE = "draftpick", "ray.serve"

requests = logging.getLogger("draftpick.requests")


def configure(config: LogsConfig) -> None:
    """Write what the router says to stderr, and warnings of whoever else is in its process, which is without Ray."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if config.format == "json" else TextLines())
    handler.addFilter(_with_request)
    logging.getLogger().addHandler(handler)
    logging.getLogger(_OURS).setLevel(logging.INFO)


def configure_in_serve() -> None:
    """Let Serve's own handlers write what the router says, for a replica."""
    handler, ours = _ToServe(), logging.getLogger(_OURS)
    handler.addFilter(_with_request)
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)


def _with_request(record: logging.LogRecord) -> bool:
    """Say which request a record belongs to, where it does not itself."""
    if (request_id := REQUEST_ID.get()) is not None and not hasattr(record, "draftpick_request_id"):
        record.draftpick_request_id = request_id
    return True


class _ToServe(logging.Handler):
    """Hands records to whatever handlers Serve has now, from the level on that it has now."""

    def emit(self, record: logging.LogRecord) -> None:
        serve = logging.getLogger(_SERVE)
        if serve.isEnabledFor(record.levelno):
            serve.handle(record)


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, the fields of `extra`, and an error's traceback."""

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
    """Time, level, logger and message, then the fields of `extra` as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # its name in the standard library
        return " ".join([super().formatMessage(record), *(f"{k}={v}" for k, v in _extra(record).items())])


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """What a record was given beside its message; Ray marks its own additions with an underscore."""
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
    """Log the line of a finished request. `decision`, `outcome`: of its last attempt, if there was one."""
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
