"""Measuring: TTFT, TPOT, tokens and acceptance from event streams and whole answers in vLLM's form."""

import math
import time
from contextlib import suppress
from typing import Any

import orjson
import pytest

from draftpick.engines.errors import StreamInterrupted
from draftpick.engines.http.json_values import dumps
from draftpick.engines.reporting.report import OutcomeReport
from draftpick.router.request.meter import EventStream, Meter, acceptance
from draftpick.router.types import Outcome
from tests.router.events import (
    CHAT_EVENTS,
    DONE,
    HEAD,
    METRICS,
    RESPONSES_EVENTS,
    ROLE,
    USAGE,
    USAGE_CHUNK,
    delta,
    event,
    joined,
    text,
)


class Timed:
    """A meter of a stream that begins now, or some seconds ago."""

    def __init__(self, *, hide_usage: bool = False, ago_s: float = 0.0) -> None:
        self.start = time.perf_counter() - ago_s
        self.meter = Meter(self.start)
        self.meter.sent = time.perf_counter() - ago_s
        self.stream = EventStream(self.meter, hide_usage=hide_usage)

    def feed(self, *events: bytes) -> float:
        """Feed events; seconds since the start."""
        self.stream.feed(joined(*events))
        return time.perf_counter() - self.start

    def outcome(self) -> Outcome:
        self.meter.http_status = 200
        return self.meter.outcome("ok")


# --- time ---


def test_the_role_is_no_content() -> None:
    timed = Timed()
    timed.feed(ROLE)
    assert timed.outcome().ttft_s is None
    time.sleep(0.01)
    latest = timed.feed(delta(content="The"))
    ttft_s = timed.outcome().ttft_s
    assert ttft_s is not None
    assert 0.01 <= ttft_s <= latest


@pytest.mark.parametrize(
    "first",
    [
        delta(content="x"),
        delta(reasoning="x"),
        delta(reasoning_content="x"),
        delta(tool_calls=[{"index": 0, "function": {"arguments": ""}}]),
        text("x"),
        event({"type": "response.output_text.delta", "delta": "x"}, "response.output_text.delta"),
        event({"type": "response.reasoning_text.delta", "delta": "x"}, "response.reasoning_text.delta"),
        event({"type": "response.function_call_arguments.delta", "delta": "x"}),
    ],
)
def test_text_reasoning_and_tool_calls_are_content(first: bytes) -> None:
    timed = Timed()
    latest = timed.feed(first)
    ttft_s = timed.outcome().ttft_s
    assert ttft_s is not None
    assert 0 <= ttft_s <= latest


@pytest.mark.parametrize("empty", [ROLE, delta("stop"), text(""), DONE, USAGE_CHUNK, RESPONSES_EVENTS[0], b": ping"])
def test_events_without_content_do_not_count_as_first(empty: bytes) -> None:
    timed = Timed()
    timed.feed(empty)
    assert timed.outcome().ttft_s is None


def test_later_content_does_not_move_ttft() -> None:
    timed = Timed()
    timed.feed(delta(content="a"))
    before = timed.outcome().ttft_s
    time.sleep(0.002)
    timed.feed(delta(content="b"))
    assert timed.outcome().ttft_s == before


def test_tpot_divides_by_the_tokens_of_usage_whatever_number_of_chunks_brought_them() -> None:
    timed = Timed()
    timed.feed(ROLE, delta(content="one chunk"))
    time.sleep(0.02)
    timed.feed(delta(content=" of four tokens"), USAGE_CHUNK, DONE)
    made = timed.outcome()
    assert made.ttft_s is not None
    assert made.e2e_s is not None
    assert made.tpot_s == pytest.approx((made.e2e_s - made.ttft_s) / 4)
    assert made.e2e_s - made.ttft_s >= 0.02


@pytest.mark.parametrize("tokens", [0, 1])
def test_tpot_of_one_token_is_undefined(tokens: int) -> None:
    timed = Timed()
    timed.feed(delta(content="x"), event({"choices": [], "usage": {**USAGE, "completion_tokens": tokens}}))
    assert timed.outcome().output_tokens == tokens
    assert timed.outcome().tpot_s is None


def test_nothing_is_defined_before_anything_came() -> None:
    assert Meter(0.0).outcome("timeout") == Outcome("timeout")


def test_the_overhead_ends_when_the_request_leaves() -> None:
    start = time.perf_counter()
    meter = Meter(start)
    time.sleep(0.005)
    meter.sent = time.perf_counter()
    latest = time.perf_counter() - start
    time.sleep(0.005)
    overhead_s = meter.outcome("ok").overhead_s
    assert overhead_s is not None
    assert 0.005 <= overhead_s <= latest


def test_status_is_what_the_caller_says() -> None:
    meter = Meter(0.0)
    meter.http_status = 404
    made = meter.outcome("client_error")
    assert (made.status, made.http_status) == ("client_error", 404)


class Arrivals:
    """When an engine's bytes came, as an `Exchange` says."""

    def __init__(self) -> None:
        self.arrived_at, self.received = 0.0, 0
        self.first_pause: tuple[float, int] | None = None

    def measure(self, *events: tuple[float, int, bytes], num_answers: int = 1) -> Outcome:
        """The outcome of events that came at a time, when so many bytes had come; all are read much later."""
        meter = Meter(10.0, num_answers)
        meter.arrivals = self  # type: ignore[assignment]
        for self.arrived_at, self.received, one in events:
            meter.observe_event(one)
        return meter.outcome("ok")


def test_durations_end_when_bytes_come_from_the_engine_not_when_they_are_read() -> None:
    usage = event({"choices": [], "usage": {**USAGE, "completion_tokens": 5}})
    made = Arrivals().measure((10.5, 1, delta(content="a")), (12.5, 2, delta(content="b")), (12.5, 3, usage))
    assert (made.ttft_s, made.e2e_s, made.tpot_s) == (0.5, 2.5, 0.5)


def test_after_a_pause_for_a_slow_reader_the_engines_pace_is_that_before_it() -> None:
    arrivals = Arrivals()
    arrivals.first_pause = (11.5, 250)
    usage = event({"choices": [], "usage": {**USAGE, "completion_tokens": 41}, "metrics": METRICS})
    made = arrivals.measure((10.5, 1, delta(content="a")), (90.0, 1000, usage))
    assert made.tpot_s == pytest.approx(1.0 / 10)  # a quarter of the forty tokens came in the second before


def test_the_engines_own_clock_is_taken_where_it_gives_one() -> None:
    made = Arrivals().measure((10.5, 1, delta(content="a")), (12.5, 2, USAGE_CHUNK))
    assert made.tpot_s == pytest.approx(0.1 / 4)
    assert made.e2e_s == 2.5


@pytest.mark.parametrize("figure", [None, "100", True, -1.0, 0, 1e9])
def test_an_impossible_figure_of_the_engine_is_not_taken(figure: Any) -> None:
    fields = {"choices": [], "usage": {**USAGE, "completion_tokens": 5}, "metrics": {"generation_time_ms": figure}}
    made = Arrivals().measure((10.5, 1, delta(content="a")), (12.5, 2, event(fields)))
    assert made.tpot_s == pytest.approx(0.5)


@pytest.mark.parametrize("tokens", [None, -4, True, 4.0, "4", 2**40, 10**400])
def test_impossible_tokens_are_none(tokens: Any) -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":%b}}' % dumps(tokens)
    made = Arrivals().measure((10.5, 1, delta(content="a")), (12.5, 2, usage))
    assert (made.prompt_tokens, made.output_tokens, made.tpot_s) == (7, None, None)


@pytest.mark.parametrize("name", ["queue_time_ms", "time_to_first_token_ms"])
def test_a_part_of_an_answers_time_is_no_longer_than_the_whole(name: str) -> None:
    meter = Meter(time.perf_counter() - 1.0)
    meter.sent = time.perf_counter() - 1.0
    given = {"queue_time_ms": 100.0, "time_to_first_token_ms": 200.0}
    meter.observe_body(orjson.dumps({"usage": USAGE, "metrics": {**given, name: 500_000.0}}))
    made = meter.outcome("ok")
    assert (made.ttft_s, made.tpot_s) == (None, None)
    assert made.queue_s == (None if name == "queue_time_ms" else 0.1)


def test_the_tokens_of_several_answers_are_decoded_side_by_side() -> None:
    usage = event({"choices": [], "usage": {**USAGE, "completion_tokens": 40}})
    made = Arrivals().measure((10.5, 1, delta(content="a")), (12.5, 2, usage), num_answers=8)
    assert (made.output_tokens, made.tpot_s) == (40, 0.5)


def test_tokens_are_estimated_while_no_usage_has_come() -> None:
    timed = Timed()
    timed.feed(ROLE)
    assert timed.meter.output_tokens() == 0
    timed.feed(*[delta(content=" word")] * 20)
    assert timed.meter.output_tokens() == 20
    timed.feed(*[delta(content=" three or four words")] * 20)
    assert 60 <= timed.meter.output_tokens() <= 110
    timed.feed(event({**HEAD, "choices": [{"delta": {"content": "x"}, "logprobs": "y" * 10_000}]}))
    assert timed.meter.output_tokens() <= 8 * 42
    timed.feed(USAGE_CHUNK, DONE)
    assert timed.meter.output_tokens() == USAGE["completion_tokens"]


def test_the_tokens_of_an_answer_without_usage_are_estimated_by_its_length() -> None:
    said = "x" * 4000
    for usage in ({}, {"usage": None}, {"usage": {"completion_tokens": -7}}):
        timed = Timed()
        timed.meter.observe_body(orjson.dumps({"choices": [{"message": {"content": said}}], **usage}))
        assert timed.outcome().output_tokens is None
        assert 1000 <= timed.meter.output_tokens() <= 1100
    for other in ({"error": {"message": said}}, {"tokens": said}, [said]):
        timed = Timed()
        timed.meter.observe_body(orjson.dumps(other))
        assert timed.meter.output_tokens() == 0


def test_a_usage_before_the_end_is_no_less_than_what_came() -> None:
    timed = Timed()
    started = {"type": "message_start", "message": {"usage": {"input_tokens": 30, "output_tokens": 1}}}
    part = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " word"}}
    timed.feed(event(started, "message_start"), *[event(part, "content_block_delta")] * 20)
    assert timed.outcome().prompt_tokens == 30
    assert 15 <= timed.meter.output_tokens() <= 25


# --- tokens and acceptance ---


def test_usage_and_acceptance_of_a_stream() -> None:
    timed = Timed(hide_usage=True)
    timed.feed(*CHAT_EVENTS)
    made = timed.outcome()
    assert (made.prompt_tokens, made.output_tokens) == (7, 5)
    assert (made.acceptance_length, made.acceptance_rate) == (2.5, 0.5)


def test_a_broken_stream_has_neither_usage_nor_end() -> None:
    timed = Timed()
    timed.feed(*CHAT_EVENTS[:3])
    made = timed.outcome()
    assert not timed.meter.terminated
    assert (made.output_tokens, made.acceptance_length, made.tpot_s) == (None, None, None)
    assert made.ttft_s is not None


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete", "response.failed", "message_stop"])
@pytest.mark.parametrize("named", [True, False])
def test_a_response_ends_with_its_last_event(kind: str, named: bool) -> None:
    timed = Timed()
    timed.feed(*RESPONSES_EVENTS[:3])
    assert not timed.meter.terminated
    timed.feed(event({"type": kind, "response": {"usage": None}}, kind if named else None))
    assert timed.meter.terminated


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"metrics": METRICS}, (2.5, 0.5)),
        ({"metrics": {"speculative_decoding": {"mean_acceptance_length": 1}}}, (1.0, None)),
        ({"metrics": {"speculative_decoding": None}}, (None, None)),
        ({"metrics": {}}, (None, None)),
        ({"metrics": None}, (None, None)),
        ({"metrics": {"speculative_decoding": {"mean_acceptance_length": "2"}}}, (None, None)),
        (
            {"metrics": {"speculative_decoding": {"mean_acceptance_length": 0.5, "draft_acceptance_rate": 1.5}}},
            (None,) * 2,
        ),
        ({"metrics": {"speculative_decoding": {"mean_acceptance_length": math.nan}}}, (None, None)),
        ({"metrics": {"speculative_decoding": {"mean_acceptance_length": 10**400}}}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_acceptance_of_an_answer(answer: dict[str, Any], expected: tuple[float | None, float | None]) -> None:
    assert acceptance(answer) == expected


@pytest.mark.parametrize(
    ("output", "steps", "accepted", "length"),
    [
        (10, 3, 6, 3.0),  # every step drafted: 1 + 3 + 6 tokens
        (10, 2, 4, 1 + 4 / 5),  # three steps without a draft
        (9, 3, 6, 8 / 3),  # the last step's tokens were cut off
        (1, 0, 0, 1.0),
    ],
)
def test_acceptance_length_counts_all_steps(output: int, steps: int, accepted: int, length: float) -> None:
    speculation = {"mean_acceptance_length": 9, "num_spec_steps": steps, "num_accepted_draft_tokens": accepted}
    answer = {"usage": {"completion_tokens": output}, "metrics": {"speculative_decoding": speculation}}
    assert acceptance(answer)[0] == pytest.approx(length)


# --- whole answers ---


def whole(answer: bytes) -> Outcome:
    timed = Timed(ago_s=1.0)
    with suppress(ValueError):
        timed.meter.observe_body(answer)
    return timed.outcome()


def test_a_whole_answer_tells_tokens_acceptance_and_the_engines_own_ttft() -> None:
    made = whole(orjson.dumps({"choices": [{}], "usage": USAGE, "metrics": METRICS}))
    assert (made.prompt_tokens, made.output_tokens) == (7, 5)
    assert (made.acceptance_length, made.acceptance_rate) == (2.5, 0.5)
    assert made.overhead_s is not None
    assert made.ttft_s == pytest.approx(made.overhead_s + 0.030 + 0.040)  # its queue, then its prefill
    assert made.queue_s == pytest.approx(0.030)


def test_a_whole_answer_without_metrics_has_no_ttft() -> None:
    made = whole(orjson.dumps({"choices": [{}], "usage": USAGE}))
    assert (made.output_tokens, made.ttft_s, made.tpot_s) == (5, None, None)
    assert made.e2e_s is not None


def test_a_whole_response_spells_its_tokens_otherwise() -> None:
    made = whole(orjson.dumps({"object": "response", "usage": {"input_tokens": 7, "output_tokens": 5}}))
    assert (made.prompt_tokens, made.output_tokens) == (7, 5)


@pytest.mark.parametrize(
    "answer",
    [b"", b"\x00\xff<garbage>\n", b"[]", b"3", b'{"usage":3}', b'{"usage":{"prompt_tokens":"7"}}', b'{"error":{}}'],
)
def test_a_whole_answer_that_is_no_answer_tells_nothing(answer: bytes) -> None:
    made = whole(answer)
    assert (made.prompt_tokens, made.output_tokens, made.ttft_s, made.acceptance_length) == (None,) * 4
    assert made.e2e_s is not None


@pytest.mark.parametrize("name", [None, "error"])
def test_an_error_event_is_kept_and_ends_no_answer(name: str | None) -> None:
    timed, told = Timed(), event({"error": {"message": "out of memory", "code": 500}}, name)
    timed.feed(delta(content="a"))
    assert not timed.meter.failed
    timed.feed(told)
    assert (timed.meter.failed, timed.meter.error_event, timed.meter.terminated) == (True, told, False)


@pytest.mark.parametrize(
    ("told", "failed"),
    [
        (b'data: {"object":"error","error":{"code":400}}', True),
        (b'data: { "error" : {"code":400}}', True),
        (b'data: {"object":"error","message":"m","code":400}', True),
        (b'data: {"error":"boom"}', True),
        (b'data: {"type":"error","code":"x","message":"m"}', True),
        (b'data: {"id":"x","error":null,"choices":[{"delta":{"content":"a"}}]}', False),
        (b'data: {"choices":[{"delta":{"content":"error"}}]}', False),
        (b'data: {"choices":[{"delta":{"content":"{\\"error\\": 1}"}}]}', False),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_an_event_is_an_error_by_what_it_says(told: bytes, failed: bool, begun: bool) -> None:
    timed = Timed()
    timed.feed(*[delta(content="a")] * begun, told)
    assert timed.meter.failed is failed


# --- reports ---


REPORT: dict[str, Any] = {"lease": "0" * 32, "status": 200, "usage": {"prompt_tokens": 7, "completion_tokens": 5}}
ENGINES_OWN = {"metrics": {"queue_time_ms": 30.0, "time_to_first_token_ms": 40.0, "generation_time_ms": 100.0}}


@pytest.mark.parametrize(
    ("told", "sent", "ttft_s", "e2e_s", "tpot_s"),
    [
        ({"e2e_s": 2.0, "ttft_s": 0.5}, 10.5, 1.0, 2.5, 1.5 / 4),
        ({"e2e_s": 2.0, "ttft_s": 0.5}, None, 0.5, 2.0, 1.5 / 4),
        ({"e2e_s": 2.0}, 10.5, None, 2.5, None),
        ({"ttft_s": 0.5}, 10.5, 1.0, None, None),
        ({"e2e_s": 2.0, "ttft_s": 0.5, **ENGINES_OWN}, 10.5, 0.57, 2.5, 0.1 / 4),  # the engine knows better
        ({"e2e_s": 2.0, **ENGINES_OWN}, None, None, 2.0, None),
        ({"e2e_s": 0.0, "ttft_s": 0.0}, 10.5, 0.5, 0.5, 0.0),
        ({"e2e_s": 2.0, "ttft_s": 0.5, "metrics": {"queue_time_ms": 10**400}}, 10.5, 1.0, 2.5, 1.5 / 4),
    ],
)
def test_what_is_told_of_an_answer_is_measured_from_its_sending(
    told: dict[str, Any], sent: float | None, ttft_s: float | None, e2e_s: float | None, tpot_s: float | None
) -> None:
    meter = Meter(10.0)
    meter.sent = sent
    meter.observe_report(OutcomeReport(**{**REPORT, **told}))
    made = meter.outcome("ok")
    assert (made.ttft_s, made.e2e_s, made.tpot_s) == tuple(x and pytest.approx(x) for x in (ttft_s, e2e_s, tpot_s))
    assert (made.http_status, made.prompt_tokens, made.output_tokens) == (200, 7, 5)


@pytest.mark.parametrize(("error", "terminated"), [(None, True), ("broken", False), ("timeout", False)])
def test_a_report_tells_whether_the_answer_was_complete(error: Any, terminated: bool) -> None:
    meter = Meter(10.0)
    meter.observe_report(OutcomeReport(**REPORT, error=error))
    assert meter.terminated is terminated
    assert meter.output_tokens() == 5


# --- boundaries ---


def test_no_time_has_passed_before_a_request_is_sent() -> None:
    meter = Meter(10.0)
    assert meter.elapsed_s() == 0.0
    meter.sent = time.perf_counter() - 5.0
    assert 5.0 <= meter.elapsed_s() < 6.0


@pytest.mark.parametrize(
    ("paused_at", "tpot_s"), [(12.5, 2.0 / (4 / 4)), (10.5, None), (10.0, None), (10.6, 0.1 / (4 / 4))]
)
def test_a_pause_before_the_first_content_tells_nothing(paused_at: float, tpot_s: float | None) -> None:
    """A quarter of the bytes, and so one of four tokens, came before the pause."""
    arrivals = Arrivals()
    arrivals.first_pause = (paused_at, 250)
    usage = event({"choices": [], "usage": {**USAGE, "completion_tokens": 5}})
    made = arrivals.measure((10.5, 1, delta(content="a")), (90.0, 1000, usage))
    assert made.tpot_s == (tpot_s and pytest.approx(tpot_s))


@pytest.mark.parametrize(("answers", "tokens", "tpot_s"), [(1, 2, 2.0), (2, 4, 2.0), (2, 2, None), (4, 6, 4.0)])
def test_time_per_token_is_that_of_the_tokens_after_the_first(answers: int, tokens: int, tpot_s: float | None) -> None:
    usage = event({"choices": [], "usage": {**USAGE, "completion_tokens": tokens}})
    made = Arrivals().measure((10.5, 1, delta(content="a")), (12.5, 2, usage), num_answers=answers)
    assert made.tpot_s == tpot_s


@pytest.mark.parametrize(("generation_ms", "tpot_s"), [(2500.0, 2.5 / 4), (2500.1, 0.5), (0.4, 0.0001)])
def test_the_engines_time_is_no_longer_than_the_whole_answer(generation_ms: float, tpot_s: float) -> None:
    fields = {
        "choices": [],
        "usage": {**USAGE, "completion_tokens": 5},
        "metrics": {"generation_time_ms": generation_ms},
    }
    made = Arrivals().measure((10.5, 1, delta(content="a")), (12.5, 2, event(fields)))
    assert made.tpot_s == pytest.approx(tpot_s)


def test_estimated_tokens_are_exact_for_words() -> None:
    """Beyond the shortest event and a word, four bytes are a token; an event has eight at most."""
    meter, shortest = Meter(0.0), len(text("x"))
    for size, tokens in ((0, 1), (4, 2), (7, 3), (8, 4), (100, 29)):
        meter.observe_event(text("x" + "y" * size))
        assert len(text("x" + "y" * size)) == shortest + size
        assert meter.output_tokens() == tokens, size
    for _ in range(2):
        meter.observe_event(text("x" + "y" * 400))
    assert meter.output_tokens() == 8 * 7


def test_usage_counts_only_when_the_answer_has_ended() -> None:
    timed = Timed()
    timed.feed(*[delta(content=" word")] * 9, USAGE_CHUNK)
    assert timed.meter.output_tokens() == 9
    timed.feed(DONE)
    assert timed.meter.output_tokens() == 5


def test_the_id_of_a_response_is_in_its_first_event_only() -> None:
    created = event({"type": "response.created", "response": {"id": "r1"}}, "response.created")
    for before, id in (((), "r1"), ((RESPONSES_EVENTS[1],), None)):
        timed = Timed()
        timed.feed(*before, created)
        assert timed.meter.response_id == id
    timed = Timed()
    for response in (None, "r1", [1], {}):
        timed = Timed()
        timed.feed(event({"type": "response.created", "response": response}, "response.created"))
        assert timed.meter.response_id is None


def test_a_failed_response_is_an_error_that_ends_the_answer() -> None:
    for kind in ("failed", "completed"):
        timed, last = Timed(), event({"type": f"response.{kind}", "response": {}}, f"response.{kind}")
        timed.feed(last)
        assert (timed.meter.terminated, timed.meter.failed) == (True, False)
        assert timed.meter.error_event == (last if kind == "failed" else None)


def test_the_prompt_is_counted_in_the_first_event_and_the_output_in_the_last() -> None:
    timed = Timed()
    started = {"type": "message_start", "message": {"usage": {"input_tokens": 30, "output_tokens": 1}}}
    ended = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 12}}
    timed.feed(event(started, "message_start"), event(ended, "message_delta"))
    assert (timed.outcome().prompt_tokens, timed.outcome().output_tokens) == (30, 12)


def test_hidden_usage_is_no_event() -> None:
    timed = Timed()
    timed.feed(delta(content="a"), USAGE_CHUNK, delta(content="b"))
    assert timed.meter.num_events == 2


def test_an_error_after_content_leaves_what_was_measured() -> None:
    timed = Timed()
    timed.feed(ROLE, delta(content="a"))
    assert timed.meter.error_event is None
    timed.feed(event({"error": {"code": 500}}))
    made = timed.outcome()
    assert made.ttft_s is not None
    assert made.http_status == 200
    assert timed.meter.num_events == 3


@pytest.mark.parametrize(("size", "long"), [(93, False), (94, False), (95, True)])
def test_an_event_may_have_its_largest_size(size: int, long: bool) -> None:
    stream = EventStream(Meter(0.0), hide_usage=False, max_bytes=100)
    part = b"data: " + b"x" * size
    if long:
        with pytest.raises(StreamInterrupted):
            stream.feed(part)
        return
    assert stream.feed(part) == b""
    assert stream.feed(b"\n\n" + part) == part + b"\n\n"
    assert stream.end() == part
