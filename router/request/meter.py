"""Measures an answer as its bytes pass, unchanged; the result is an `Outcome`.

It measures the engine, not the client: durations are those of the engine's own `metrics` where it gives them, else they
end when bytes arrive from the engine, whenever the client takes them. Tokens come from `usage`, acceptance from the
engine's `metrics`. Only server-sent events that may contain the first content or the usage are parsed; all others are
scanned.
"""

import math
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from draftpick.engines.errors import StreamInterrupted
from draftpick.engines.http.json_values import MAX_TAU, dumps, parse, parse_object, to_count, to_figure
from draftpick.engines.pool import report
from draftpick.engines.reporting.report import OutcomeReport
from draftpick.router.request.api_forms import CONTENT, told_error
from draftpick.router.types import Fault, Outcome, PredictionTokens, Status

if TYPE_CHECKING:
    from draftpick.engines.http.connection import Exchange
    from draftpick.router.request.stream_resume import StreamResume

_USAGE, _ERROR = b'"usage"', b'"error"'
_ERROR_EVENT = b"event: error"
_CREATED = b"event: response.created"
_FORMS_OF_TYPE = ("event: %s", 'data: {"type":"%s"', 'data: {"type": "%s"')
"""How an event begins that tells its type."""
_FAILED_RESPONSE = tuple((form % "response.failed").encode() for form in _FORMS_OF_TYPE)
_ENDS = ("message_stop", "response.completed", "response.incomplete")
_DONE = (
    b"data: [DONE]",
    *((form % kind).encode() for kind in _ENDS for form in _FORMS_OF_TYPE),
    *_FAILED_RESPONSE,
)


_CHARS_PER_TOKEN = 4
_MAX_TOKENS_PER_EVENT = 8


class Meter:
    """Measures one attempt. `accepted`: when the router had the complete request (`time.perf_counter()`).

    `num_answers`: sequences that the request asks for (`n`, times its prompts), decoded side by side. `ttft_s`: of a
    stream, None before its first content. `arrivals`: says when the engine's bytes came; None: when they are read.
    `sent`: when the request was sent to the engine. `failed`: it contains an error event; `error_event`: that, or the
    event of a failed response. `response_id`: of an answer of `/v1/responses`.
    """

    def __init__(self, accepted: float, num_answers: int = 1) -> None:
        self._accepted, self._num_answers = accepted, num_answers
        self.arrivals: Exchange | None = None
        self.num_events = self._content_events = self._content_bytes = self._body_bytes = 0
        self._shortest = math.inf
        self.sent: float | None = None
        self.ttft_s: float | None = None
        self._last: float | None = None
        self._fields: dict[str, Any] = {}
        self._metrics: dict[str, Any] = {}
        self.terminated = False
        self.failed = False
        self.error_event: bytes | None = None
        self.response_id: Any = None
        self.http_status: int | None = None

    def elapsed_s(self) -> float:
        """Seconds since the request was sent to the engine."""
        return 0.0 if self.sent is None else time.perf_counter() - self.sent

    def observe_body(self, body: bytes) -> Any:
        """Read a complete JSON answer; returns it. Raises `ValueError` if it is not JSON."""
        self._last = time.perf_counter() if self.arrivals is None else self.arrivals.arrived_at
        self.terminated = True
        fields, _ = parse(body)
        self._keep_usage(fields)
        if isinstance(fields, dict) and not fields.keys().isdisjoint(CONTENT):
            self._body_bytes = len(body)
        ttft_s = _seconds(self._metrics, "time_to_first_token_ms")
        if ttft_s is not None and self.sent is not None:  # the engine counts from the end of its queue
            queue_s = _seconds(self._metrics, "queue_time_ms") or 0.0
            self.ttft_s = self.sent - self._accepted + queue_s + ttft_s
        return fields

    def observe_report(self, told: OutcomeReport) -> None:
        """Read what is told of an answer that did not pass here. Its times count from sending the request."""
        self.observe_body(dumps({"usage": told.usage, "metrics": told.metrics}))
        self.http_status, self.terminated = told.status, told.error is None
        sent = self._accepted if self.sent is None else self.sent
        self._last = None if told.e2e_s is None else sent + told.e2e_s
        if self.ttft_s is None and told.ttft_s is not None:
            self.ttft_s = sent - self._accepted + told.ttft_s

    def observe_event(self, event: bytes) -> bool:
        """Read one server-sent event (without its blank line); returns True for a pure usage chunk."""
        now = self._last = time.perf_counter() if self.arrivals is None else self.arrivals.arrived_at
        if self.num_events == 0 and event.startswith(_CREATED):
            response = (parse_object(event.partition(b"data: ")[2]) or {}).get("response")
            self.response_id = response.get("id") if isinstance(response, dict) else None
        if event.startswith(_DONE):
            self.terminated = True
            if event.startswith(_FAILED_RESPONSE):
                self.error_event = event
        elif event.startswith(_ERROR_EVENT) or (
            _ERROR in event and told_error(parse_object(event.partition(b"data: ")[2])) is not None
        ):
            self.failed, self.error_event = True, event
        if (
            _USAGE in event
            and self._keep_usage(parse_object(event.partition(b"data: ")[2]))
            and self._fields.get("choices") == []
        ):
            return True
        if self.ttft_s is None and _has_content(event):
            self.ttft_s = now - self._accepted
        self.num_events += 1
        if self.ttft_s is not None:
            size = len(event)
            self._content_events += 1
            self._content_bytes += size
            if size < self._shortest:
                self._shortest = size
        return False

    def _keep_usage(self, fields: Any) -> bool:
        """Keep the fields of an answer or a chunk with usage; returns False if it has none."""
        if not isinstance(fields, dict):
            return False
        inner = fields.get("response") or fields.get("message")  # of `/v1/responses` and `/v1/messages`
        fields = inner if isinstance(inner, dict) else fields
        if not isinstance(usage := fields.get("usage"), dict) or not usage:
            return False
        # `/v1/messages` may count the prompt in its first event alone, and the output in its last one.
        before = self._fields.get("usage", {})
        self._fields = {**fields, "usage": {**before, **usage}} if before else fields
        metrics = fields.get("metrics")
        self._metrics = metrics if isinstance(metrics, dict) else {}
        return True

    def outcome(self, status: Status, fault: Fault | None = None) -> Outcome:
        """The measurements so far, for an attempt that ended with this status, by this fault."""
        e2e_s = None if self._last is None else self._last - self._accepted
        whole_s = math.inf if e2e_s is None else e2e_s
        if self.ttft_s is not None and self.ttft_s > whole_s:  # an engine's figure: a part is longer than the whole
            self.ttft_s = None
        queue_s = _seconds(self._metrics, "queue_time_ms")
        prompt, output = _tokens(self._fields.get("usage"))
        length, rate = acceptance(self._fields)
        speculation = self._metrics.get("speculative_decoding")
        by_drafter = speculation.get(report.FIELD) if isinstance(speculation, dict) else None
        return Outcome(
            status=status,
            http_status=self.http_status,
            ttft_s=self.ttft_s,
            tpot_s=self._tpot(e2e_s, output),
            e2e_s=e2e_s,
            prompt_tokens=prompt,
            output_tokens=output,
            acceptance_length=length,
            acceptance_rate=rate,
            overhead_s=None if self.sent is None else self.sent - self._accepted,
            queue_s=queue_s if queue_s is not None and queue_s <= whole_s else None,
            fault=fault,
            drafters=None if by_drafter is None else report.parse(by_drafter),
        )

    def with_prediction(self, outcome: Outcome) -> Outcome:
        """Return the measurements with what the engine says of the request's prediction."""
        usage = self._fields.get("usage", {})
        details = usage.get("completion_tokens_details")
        if not isinstance(details, dict):
            return outcome
        accepted, rejected = (to_count(details.get(f"{what}_prediction_tokens")) for what in ("accepted", "rejected"))
        if accepted is None or rejected is None:
            return outcome
        return replace(outcome, prediction=PredictionTokens(accepted, rejected))

    def _tpot(self, e2e_s: float | None, output: int | None) -> float | None:
        """Seconds per token of one answer after its first; None if undefined."""
        steps = (output or 0) / self._num_answers - 1
        if self.ttft_s is None or e2e_s is None or steps <= 0:
            return None
        if self.arrivals is not None and self.arrivals.first_pause is not None:
            # Later on the client's reading slows the engine: the part before tells how fast it is.
            paused_at, received = self.arrivals.first_pause
            part_s = paused_at - self._accepted - self.ttft_s
            return part_s / (steps * received / self.arrivals.received) if part_s > 0 else None
        decode_s = _seconds(self._metrics, "generation_time_ms")
        return (decode_s if decode_s and decode_s <= e2e_s else e2e_s - self.ttft_s) / steps

    def output_tokens(self) -> int:
        """Output tokens that came so far: those of the usage at the end of an answer; before it, and without one, at
        least as many as its events, or its length, let estimate."""
        output = _tokens(self._fields.get("usage"))[1]
        if output is not None and self.terminated:
            return output
        return max(output or 0, self._estimate_tokens())

    def _estimate_tokens(self) -> int:
        if not self._content_events:
            return self._body_bytes // _CHARS_PER_TOKEN
        # An event of one token is as long as the shortest, and a word; what is longer has more tokens.
        events = self._content_events
        beyond = self._content_bytes - events * (self._shortest + _CHARS_PER_TOKEN)
        more = max(int(beyond) // _CHARS_PER_TOKEN, 0)
        return min(events + more, _MAX_TOKENS_PER_EVENT * events)


_BLANK = re.compile(rb"(?>\r\n|\r|\n)(?>\r\n|\r|\n)")
_BOM = b"\xef\xbb\xbf"
_FORMS = (b"data: ", b"event: ")
"""Beginnings of events that have the form of `_plain`, if each is one line, as nearly all are."""


class EventStream:
    """Splits a byte stream into server-sent events; drops the usage chunk if only the router requested it.

    Lines end with LF, CRLF or CR, in any mixture (the HTML standard, 9.2.6).
    """

    def __init__(
        self,
        meter: Meter,
        *,
        hide_usage: bool,
        resume_state: "StreamResume | None" = None,
        max_bytes: int = 2**25,
    ) -> None:
        """`resume_state` gets each event, and may change or drop it. `max_bytes`: of one event."""
        self._meter, self._hide_usage, self._resume_state = meter, hide_usage, resume_state
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._held = 0

    def feed(self, chunk: bytes) -> bytes:
        """Return the bytes to forward now: complete events, unchanged. Raises `StreamInterrupted` for a long event."""
        data = chunk
        if self._parts:
            # Only what is new is searched: a long event that comes in many parts is joined once.
            if _BLANK.search(self._parts[-1][-3:] + chunk) is None:
                return self._hold(chunk)
            data = b"".join([*self._parts, chunk])
            self._parts, self._held = [], 0
        if b"\r" in data:
            return self._feed_mixed(data)
        end = data.rfind(b"\n\n")
        if end < 0:
            return self._hold(data)
        if len(data) > end + 2:
            self._keep(data[end + 2 :])
            data = data[: end + 2]
        return self._observe(data, data[:-2].split(b"\n\n"), b"\n\n")

    def _feed_mixed(self, data: bytes) -> bytes:
        at, whole, out = 0, [], []
        for blank in _BLANK.finditer(data):
            whole.append((data[at : blank.start()], blank[0]))
            at = blank.end()
        if at < len(data):
            self._keep(data[at:])
        for event, separator in whole:
            out.append(self._observe(event + separator, [event], separator))
        return b"".join(out)

    def _observe(self, data: bytes, events: list[bytes], separator: bytes) -> bytes:
        """Observe events; return what is forwarded of them, which is `data` unless one is dropped or changed."""
        observe = self._meter.observe_event
        plain = [
            e if e.startswith(_FORMS) and b"\r" not in e and e.count(b"\n") == (e[:1] == b"e") else _plain(e)
            for e in events
        ]
        hidden = [bool(event) and observe(event) for event in plain]
        if self._resume_state is not None:
            events = list(map(self._resume_state.forward, events, plain))
        elif not (self._hide_usage and any(hidden)):
            return data
        kept = [event for event, hide in zip(events, hidden, strict=True) if event and not (self._hide_usage and hide)]
        return b"".join([event + separator for event in kept])

    def _keep(self, part: bytes) -> None:
        self._parts.append(part)
        self._held += len(part)

    def _hold(self, part: bytes) -> bytes:
        """Keep a part without a complete event; returns what is forwarded, which is nothing."""
        self._keep(part)
        if self._held > self._max_bytes:
            raise StreamInterrupted(f"an event is longer than {self._max_bytes} bytes")
        return b""

    def end(self) -> bytes:
        """Return the rest of a stream that ended without a blank line."""
        rest = b"".join(self._parts)
        self._parts, self._held = [], 0
        if rest.strip():
            self._meter.observe_event(_plain(rest))
        return rest


def _plain(event: bytes) -> bytes:
    """The same event with LF, one `event: ` at most, and then one `data: `; without comments and other fields."""
    kind, data = b"", list[bytes]()
    for line in event.removeprefix(_BOM).splitlines():
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            kind = b"event: %b\n" % value
    return kind + (b"data: " + b"\n".join(data) if data else b"")


def acceptance(answer: dict[str, Any]) -> tuple[float | None, float | None]:
    """(acceptance length, acceptance rate) from vLLM's experimental per-request metrics; None if absent.

    vLLM's `mean_acceptance_length` excludes steps without a draft. They take time too, so they count here: the length
    is tokens per decoding step.
    """
    metrics = answer.get("metrics")
    speculation = metrics.get("speculative_decoding") if isinstance(metrics, dict) else None
    if not isinstance(speculation, dict):
        return None, None
    length = to_figure(speculation.get("mean_acceptance_length"), 1.0, MAX_TAU)
    rate = to_figure(speculation.get("draft_acceptance_rate"), 0.0, 1.0)
    steps, accepted = (to_count(speculation.get(name)) for name in ("num_spec_steps", "num_accepted_draft_tokens"))
    _, output = _tokens(answer.get("usage"))
    if length is not None and output is not None and steps is not None and accepted is not None:
        # The first token comes from the prefill; the last step may have accepted more tokens than were sent.
        steps += max(0, output - 1 - steps - accepted)
        length = max(1.0, (output - 1) / max(1, steps))
    return length, rate


def _tokens(usage: Any) -> tuple[int | None, int | None]:
    if not isinstance(usage, dict):
        return None, None
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    output = usage.get("completion_tokens", usage.get("output_tokens"))
    return to_count(prompt), to_count(output)


def _seconds(metrics: dict[str, Any], name: str) -> float | None:
    """A duration of the engine's own metrics, given in milliseconds; None if absent or impossible."""
    milliseconds = to_figure(metrics.get(name))
    return None if milliseconds is None else milliseconds / 1000


def _has_content(event: bytes) -> bool:
    """True if an event has content: text, a tool call, reasoning, or a delta of a response."""
    if b"data: {" not in event or (fields := parse_object(event.partition(b"data: ")[2])) is None:
        return False
    if isinstance(fields.get("type"), str):
        return str(fields["type"]).endswith((".delta", "content_block_delta"))
    choices = fields.get("choices")
    return isinstance(choices, list) and any(_choice_has_content(c) for c in choices if isinstance(c, dict))


def _choice_has_content(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return bool(choice.get("text"))
    return any(delta.get(name) for name in ("content", "tool_calls", "reasoning", "reasoning_content", "function_call"))
