"""Searches all that a test run left for what must be nowhere: prompt texts and keys of its requests.

Looked into: what was logged by any logger, what routers recorded, pages of state and metrics, bodies of errors, spans.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import httpx
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

PROMPT = "canaryquokka"
"""Stands in the prompts of requests to routers of the tests."""
HIDDEN = (PROMPT, "dp-secret-of-a-team", "dp-secret-of-an-admin", "dp-guessed", "dp-late", "dp-few", "dp-small")

_PAGES = ("/ready", "/metrics", "/v1/route/state", "/v1/route/explain", "/v1/route/events")


class Trace(logging.Handler):
    """Keeps what may hold a secret, as lines of one file."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.DEBUG)
        self.path = path
        self._file = path.open("a", encoding="utf-8", errors="replace")
        self.seen = dict.fromkeys(("logged", "answers", "spans"), 0)

    def emit(self, record: logging.LogRecord) -> None:
        # Clients of the tests log what they send themselves, at their own debug level.
        if not record.name.startswith(("httpx", "httpcore", "openai", "asyncio", "hypothesis", "urllib3")):
            self.seen["logged"] += 1
            self._write(f"log {record.name}", self.format(record))

    async def answered(self, answer: httpx.Response) -> None:
        """For a client's hooks: keeps errors, and pages about the router itself."""
        if answer.status_code >= 400 or answer.request.url.path in _PAGES:
            self.seen["answers"] += 1
            await answer.aread()
            self._write(f"answer {answer.status_code} {answer.request.url.path}", answer.text)

    def traced(self, span: ReadableSpan) -> None:
        """Keeps what a span says."""
        self.seen["spans"] += 1
        happened = [(event.name, dict(event.attributes or {})) for event in span.events]
        self._write(f"span {span.name}", f"{dict(span.attributes or {})} {happened} {span.status.description}")

    def _write(self, where: str, text: str) -> None:
        self._file.write(f"{where}: {text}\n".replace("\n", " ") + "\n")

    def end(self) -> None:
        """Nothing more comes. Not `close`, which whoever configures logging calls for all handlers there are."""
        self._file.close()


class Exporter(SpanExporter):
    """Takes the spans of routers to a trace."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            self._trace.traced(span)
        return SpanExportResult.SUCCESS


def found(trace: Path, records: Path) -> list[str]:
    """Every line of the trace and of records below a folder that holds what must be hidden, and where it was."""
    places = [trace, *records.rglob("records-*.jsonl")]
    return [
        f"{path.name}: {line[:200]}"
        for path in places
        for line in path.read_text(errors="replace").splitlines()
        if any(hidden in line for hidden in HIDDEN)
    ]
