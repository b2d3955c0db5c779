"""OpenTelemetry spans of sampled requests: the request, its decision, every attempt, and its relay.

W3C's `traceparent` propagates from the client to the engine, whose own spans follow. Attributes contain no request text
and no keys. All further settings, such as headers and certificates of the exporter or the service's name, come from
OpenTelemetry's own variables (`OTEL_*`).
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from draftpick.engines.errors import ConfigError
from draftpick.router.config.sections import TracingConfig
from draftpick.router.errors import RequestError
from draftpick.router.types import Decision, Outcome

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

    from draftpick.engines.http.client import Headers

_W3C = TraceContextTextMapPropagator()
_HEADERS = frozenset(_W3C.fields)
_TRACES = "/v1/traces"
_SERVER_ERROR = 500
Attributes = Mapping[str, str | int | float | bool]


class Tracing:
    """Starts traces, and exports them in a separate thread."""

    def __init__(self, config: TracingConfig, *processors: "SpanProcessor") -> None:
        """`processors`: process the spans; by default they are exported to the collector.

        Raises `ConfigError` if OpenTelemetry's SDK is not installed.
        """
        try:
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        except ModuleNotFoundError as error:
            problem = "traces need OpenTelemetry's SDK"
            raise ConfigError("router.tracing", problem, "pip install 'draftpick[tracing]'") from error

        named = Resource.create({"service.name": "draftpick"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(
            ParentBased(TraceIdRatioBased(config.sample_rate)), named, shutdown_on_exit=False
        )
        for processor in processors or (_exporter(config.endpoint),):
            self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("draftpick")

    def start_trace(
        self, request_id: str, method: str, path: str, headers: "Headers", *, stream: bool, accepted: float
    ) -> "Trace":
        """Start the trace of a request. `path`: for the span's name; `accepted`: of `time.perf_counter()`."""
        about: Attributes = {
            "http.request.method": method,
            "url.path": path,
            "draftpick.request_id": request_id,
            "draftpick.stream": stream,
        }
        began = time.time_ns() - round((time.perf_counter() - accepted) * 1e9)
        return Trace(self._tracer, f"{method} {path}", headers, about, began)

    def close(self) -> None:
        """Flush all spans; waits for the collector."""
        self._provider.shutdown()


class Trace:
    """The spans of one request.

    A request that is not sampled has none; the sampling decision propagates to its engine.
    """

    __slots__ = ("_attempt_span", "_context", "_decision_span", "_relay_span", "_root_span", "_sampled", "_tracer")

    def __init__(self, tracer: Tracer, name: str, headers: "Headers", about: Attributes, began_ns: int) -> None:
        """`headers`: of the client's request, whose trace continues; `began_ns`: nanoseconds since the epoch."""
        parent = _W3C.extract({key: value for key, value in headers if key in _HEADERS})
        self._tracer = tracer
        self._root_span = tracer.start_span(name, parent, SpanKind.SERVER, about, start_time=began_ns)
        self._context, self._sampled = (
            trace.set_span_in_context(self._root_span, parent),
            self._root_span.is_recording(),
        )
        self._decision_span: Span | None = None
        self._attempt_span: Span | None = None
        self._relay_span: Span | None = None

    def decision_started(self) -> None:
        """Start the decision's span: the request has a slot."""
        if self._sampled:
            self._decision_span = self._tracer.start_span("decide", self._context)

    def decision_made(self, decision: Decision) -> None:
        """End the decision's span."""
        if self._decision_span is not None:
            self._decision_span.set_attributes(_decision_attributes(decision))
            self._decision_span.end()
            self._decision_span = None

    def attempt_started(self, decision: Decision, number: int, headers: "Headers", url: str) -> "Headers":
        """Start the span of attempt `number`; returns `headers` with this trace in place of the client's."""
        context = self._context
        if self._sampled:
            about = {**_decision_attributes(decision), "draftpick.attempt": number, "draftpick.replica": url}
            self._attempt_span = self._tracer.start_span("attempt", context, SpanKind.CLIENT, about)
            context = trace.set_span_in_context(self._attempt_span, context)
        carried: dict[str, str] = {}
        _W3C.inject(carried, context)
        kept = [(name, value) for name, value in headers if name not in _HEADERS]
        return [*kept, *carried.items()]

    def response_started(self, status: int) -> None:
        """Status and headers of the engine's answer have arrived: unless it is an error, its relay starts."""
        if self._attempt_span is not None and status < 400:
            inside = trace.set_span_in_context(self._attempt_span, self._context)
            self._relay_span = self._tracer.start_span("relay", inside)

    def attempt_ended(self, outcome: Outcome) -> None:
        """End the attempt's span."""
        if self._relay_span is not None:
            self._relay_span.end()
        if self._attempt_span is not None:
            self._attempt_span.set_attributes(_outcome_attributes(outcome))
            _set_status(self._attempt_span, outcome)
            self._attempt_span.end()
        self._relay_span = self._attempt_span = None

    def request_ended(
        self, arm: str | None, attempts: int, outcome: Outcome | None, error: BaseException | None
    ) -> None:
        """End the request's span: with its last attempt, on `arm`, or by an error before any attempt."""
        if not self._sampled:
            return
        if self._decision_span is not None:
            self._decision_span.end()
        if arm is not None and outcome is not None:
            self._root_span.set_attributes({"draftpick.arm": arm, "draftpick.attempts": attempts})
            self._root_span.set_attributes(_outcome_attributes(outcome))
            _set_status(self._root_span, outcome)
        if error is not None:
            self._root_span.set_attribute("error.type", type(error).__name__)
        if isinstance(error, RequestError):
            self._root_span.set_attribute("http.response.status_code", error.status)
            if error.status >= _SERVER_ERROR:
                self._root_span.set_status(Status(StatusCode.ERROR, error.code))
        self._root_span.end()


def _decision_attributes(decision: Decision) -> Attributes:
    return {
        "draftpick.arm": decision.arm,
        "draftpick.reason": decision.reason,
        "draftpick.policy": decision.policy,
        "draftpick.propensity": decision.propensity,
    }


def _outcome_attributes(outcome: Outcome) -> Attributes:
    found = {
        "draftpick.status": outcome.status,
        "draftpick.ttft_s": outcome.ttft_s,
        "draftpick.tpot_s": outcome.tpot_s,
        "draftpick.queue_s": outcome.queue_s,
        "draftpick.acceptance_length": outcome.acceptance_length,
        "http.response.status_code": outcome.http_status,
        "gen_ai.usage.input_tokens": outcome.prompt_tokens,
        "gen_ai.usage.output_tokens": outcome.output_tokens,
    }
    return {name: value for name, value in found.items() if value is not None}


def _set_status(span: Span, outcome: Outcome) -> None:
    """Mark a span as an error if the router or an engine is at fault."""
    if outcome.failed:
        span.set_status(Status(StatusCode.ERROR, outcome.status))


def _exporter(endpoint: str | None) -> "SpanProcessor":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if endpoint is None:
        return BatchSpanProcessor(OTLPSpanExporter())
    whole = endpoint if endpoint.rstrip("/").endswith(_TRACES) else endpoint.rstrip("/") + _TRACES
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=whole))
