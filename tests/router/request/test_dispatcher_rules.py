"""The dispatcher's rules, without a network: when a request is tried again, what is learned of it, what it costs."""

import asyncio
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from draftpick.engines.replicas import Lease, ReplicaTable
from draftpick.router.errors import BadRequest, EngineFailed, Overloaded, TimedOut
from draftpick.router.online.sessions import Sessions
from draftpick.router.openai_request import Request
from draftpick.router.request.ability import Rejection
from draftpick.router.request.dispatcher import Dispatcher, _count_tokens
from draftpick.router.request.meter import Meter
from draftpick.router.request.predictions import Predictions
from draftpick.router.request.state import ClientRequest, RequestState
from draftpick.router.request.verdict import BROKEN, CANCELLED, NO_REPLICA, OK, REJECTED, Verdict
from draftpick.router.types import Attempt, Context, Decision, Outcome, Reason

LIMITS = {True: 10.0, False: 100.0}
FAILED = Verdict("engine_error", "engine", retry=True, healthy=False)


class World:
    """A dispatcher of the engines `a` and `b` (two replicas), and a request that `a` was chosen for."""

    def __init__(self, *, reason: Reason = "policy", request: dict[str, Any] | None = None, **config: Any) -> None:
        self.table = ReplicaTable(["a", "b"])
        self.table.update("a", ["http://a"])
        self.table.update("b", ["http://b1", "http://b2"])
        self.metrics = SimpleNamespace(
            failures=Counter[tuple[str, str]](), ignored_forecasts=Counter[str](), requests=Counter[tuple[str, str]](),
            streams_resumed=0,
        )  # fmt: skip
        given = {"max_attempts": 3, "wait_for_engine_s": 0.2, "resume_streams": False, "paths": [], **config}
        self.config = SimpleNamespace(logs=SimpleNamespace(access_log=False), **given)
        self.rejection: tuple[Rejection, frozenset[str]] | None = None
        self.answered, self.attempts = list[Any](), list[Attempt]()
        abilities = SimpleNamespace(
            rejection=lambda *_: self.rejection, record_answer=lambda *answer: self.answered.append(answer)
        )
        self.inserted = list[Any]()
        self.prefixes = SimpleNamespace(insert=lambda *given: self.inserted.append(given))
        self.demand = SimpleNamespace(decisions=Counter[tuple[str, str]]())
        self.decision = Decision("b", 1.0, {"a": 0.0, "b": 1.0}, "p", "fallback")
        admission = SimpleNamespace(limits=SimpleNamespace(retry_after_s=7.0))
        parts: Any = {
            "replicas": self.table, "client": SimpleNamespace(response_timeout_s=LIMITS), "decide": self._decide,
            "admission": admission, "prefixes": self.prefixes, "demand": self.demand, "shadow": None,
            "metrics": self.metrics, "abilities": abilities, "on_attempt_end": self.attempts.append,
            "predictions": Predictions({}), "sessions": Sessions(),
        }  # fmt: skip
        self.dispatcher = Dispatcher(self.config, **parts)  # type: ignore[arg-type]
        self.decided = list[dict[str, Any]]()
        fields = {"path": "/v1/completions", "body": b"{}", "text": "x" * 40, "stream": True, **(request or {})}
        asked = ClientRequest(Request(**fields), "POST", "/", [], "id", "id", time.perf_counter())
        self.state = RequestState(asked, decision=Decision("a", 1.0, {"a": 1.0, "b": 0.0}, "p", reason))

    def with_request(self, **changes: Any) -> None:
        """Change the client's request."""
        self.state.client_request = replace(self.state.client_request, **changes)

    def _decide(self, context: object, pin: object = None, **given: Any) -> Decision:
        self.decided.append(given)
        return self.decision

    def try_all(self, *arms: str) -> None:
        """All replicas of these arms were tried."""
        self.state.tried |= {one for arm in arms for one in self.table.by_arm[arm]}


@pytest.mark.parametrize(
    ("number", "tried", "reason", "unable", "can"),
    [
        (1, "a", "policy", "", True),
        (2, "a", "policy", "", True),
        (3, "a", "policy", "", False),  # three attempts at most
        (1, "ab", "policy", "", False),
        (1, "a", "policy", "b", False),
        (1, "a", "fallback", "", True),
        (1, "a", "pinned", "", False),
        (1, "b", "pinned", "", True),
    ],
)
def test_another_attempt_needs_an_engine_and_one_more_to_be_allowed(
    number: int, tried: str, reason: Reason, unable: str, can: bool
) -> None:
    world = World(reason=reason)
    world.state.number, world.state.unable = number, dict.fromkeys(unable, "is not asked")
    world.try_all(*tried)
    assert world.dispatcher._can_retry(world.state) is can


@pytest.mark.parametrize(("number", "can"), [(15, True), (16, False)])
def test_a_stored_response_is_looked_for_at_sixteen_replicas(number: int, can: bool) -> None:
    world = World(request={"state_id": "resp_1"})
    world.state.number = number
    assert world.dispatcher._can_retry(world.state) is can


def test_all_retries_together_have_the_time_of_one_attempt() -> None:
    for stream in (True, False):
        world = World(request={"stream": stream})
        before = time.perf_counter()
        assert world.dispatcher._in_time(world.state)
        assert world.state.retry_until == pytest.approx(before + LIMITS[stream], abs=0.5)
        world.state.retry_until = time.perf_counter() - 0.001
        assert not world.dispatcher._in_time(world.state)
        assert world.state.retry_until < time.perf_counter()


@pytest.mark.parametrize(
    ("deadline_s", "retry_s", "left_s"),
    [(None, 5.0, 5.0), (3.0, None, 3.0), (3.0, 5.0, 3.0), (5.0, 3.0, 3.0), (5.0, -1.0, 0.0), (None, None, None)],
)
def test_an_attempt_has_what_is_left_of_both_limits(
    deadline_s: float | None, retry_s: float | None, left_s: float | None
) -> None:
    world, now = World(), time.perf_counter()
    world.with_request(deadline=None if deadline_s is None else now + deadline_s)
    world.state.retry_until = None if retry_s is None else now + retry_s
    found = world.dispatcher._time_left_s(world.state)
    assert found == (None if left_s is None else pytest.approx(left_s, abs=0.1))


def test_a_deadline_that_has_passed_ends_a_request() -> None:
    world = World()
    world.with_request(deadline=time.perf_counter())
    with pytest.raises(TimedOut):
        world.dispatcher._time_left_s(world.state)


@pytest.mark.parametrize(
    ("verdict", "shown", "error", "says"),
    [
        (Verdict("router_error", "router"), True, Overloaded, "no descriptors left"),
        (Verdict("client_error", "client"), True, BadRequest, "cannot be written as HTTP"),
        (Verdict("engine_error", "engine"), True, EngineFailed, r"no engine answered \(a, c tried\)"),
        (Verdict("engine_error", "engine"), False, EngineFailed, r"no engine answered$"),
    ],
)
def test_the_error_names_whose_fault_it_is(verdict: Verdict, shown: bool, error: type[Exception], says: str) -> None:
    world = World()
    world.with_request(show_routing=shown)
    world.state.failed = {"c"}
    found = world.dispatcher._failure(world.state, verdict)
    with pytest.raises(error, match=says):
        raise found
    if isinstance(found, Overloaded):
        assert found.retry_after_s == 7.0


@pytest.mark.parametrize(
    ("verdict", "status"),
    [
        (Verdict("timeout", "engine"), 504),
        (Verdict("broken", "client"), 504),
        (Verdict("engine_error", "engine"), 502),
        (NO_REPLICA, 502),
    ],
)
def test_an_answer_that_takes_too_long_is_a_timeout(verdict: Verdict, status: int) -> None:
    world = World()
    assert world.dispatcher._failure(world.state, verdict).status == status


async def test_the_next_attempt_avoids_the_engines_that_failed() -> None:
    world = World()
    world.try_all("a")
    await world.dispatcher._before_retry(world.state, FAILED)
    assert (world.state.number, world.state.failed, world.state.decision.arm) == (2, {"a"}, "b")
    (given,) = world.decided
    assert (given["failed"], given["tried"], given["explore"]) == ({"a"}, world.state.tried, True)
    for verdict in (REJECTED, CANCELLED, Verdict("timeout", "engine")):
        with pytest.raises((EngineFailed, BadRequest)):
            await world.dispatcher._before_retry(world.state, verdict)
    assert world.state.number == 2


async def test_no_engine_is_waited_for_that_has_answered() -> None:
    for last_status, waits in ((None, True), (503, False)):
        world = World()
        world.try_all("a", "b")
        world.state.failed = {"a", "b"}
        world.state.last = attempt(Outcome("engine_error", last_status))
        assert await world.dispatcher._wait_for_recovery(world.state, FAILED) is waits
        assert bool(world.state.tried) is bool(world.state.failed) is not waits
        assert world.state.retry_rounds == int(waits)


@pytest.mark.parametrize(
    ("verdict", "rounds", "waits"),
    [(FAILED, 0, True), (FAILED, 1, True), (FAILED, 2, False), (BROKEN, 0, False), (Verdict("timeout"), 0, False)],
)
async def test_the_wait_for_engines_doubles_within_a_limit(verdict: Verdict, rounds: int, waits: bool) -> None:
    world = World(wait_for_engine_s=0.15)
    world.state.retry_rounds = rounds
    began = time.perf_counter()
    assert await world.dispatcher._wait_for_recovery(world.state, verdict) is waits
    assert time.perf_counter() - began >= (0.05 * 2**rounds if waits else 0.0)


def attempt(outcome: Outcome) -> Attempt:
    return Attempt("id", 1, "/", True, {}, None, Decision("a", 1.0, {"a": 1.0}, "p"), outcome, {})


# --- what an engine rejects ---


TOLD = Rejection("a", frozenset({"min_p"}))
FORECAST: Any = SimpleNamespace(to_json=lambda: "{}")


@pytest.mark.parametrize(
    ("forecast", "engine_args", "body", "rejected"),
    [
        (FORECAST, None, b"unknown field vllm_xargs", True),
        (FORECAST, None, b"unknown field", False),
        (None, None, b"unknown field vllm_xargs", False),
        (FORECAST, {"a": 1}, b"unknown field vllm_xargs", False),  # the client's own
    ],
)
def test_an_engine_that_rejects_a_forecast_is_asked_without(
    forecast: Any, engine_args: Any, body: bytes, rejected: bool
) -> None:
    world = World(request={"engine_args": engine_args})
    world.state.decision = Decision("a", 1.0, {"a": 1.0}, "p", forecast=forecast)
    world.try_all("a", "b")
    meter = Meter(0.0)
    meter.http_status = 400
    assert world.dispatcher._try_again(world.state, REJECTED, meter, body) is rejected
    assert world.metrics.ignored_forecasts == ({"a": 1} if rejected else {})
    assert bool(world.state.tried) is not rejected
    until = world.dispatcher._no_args_until.get("a", 0.0)
    assert until == (pytest.approx(time.monotonic() + 600, abs=0.5) if rejected else 0.0)


@pytest.mark.parametrize(
    ("reason", "request_", "status", "known", "again"),
    [
        ("policy", {}, 400, True, True),
        ("policy", {}, 400, False, False),
        ("pinned", {}, 400, True, False),
        ("shadow", {}, 400, True, False),
        ("policy", {"state_id": "r"}, 404, False, True),  # the state is elsewhere
        ("policy", {"state_id": "r"}, 400, False, False),
        ("policy", {"state_id": "r"}, 410, False, False),
        ("policy", {}, 404, False, False),
    ],
)
def test_what_others_take_goes_to_them(
    reason: Reason, request_: dict[str, Any], status: int, known: bool, again: bool
) -> None:
    world = World(reason=reason, request=request_)
    world.rejection = (TOLD, frozenset({"b"})) if known else None
    meter = Meter(0.0)
    meter.http_status = status
    assert world.dispatcher._try_again(world.state, REJECTED, meter, b"") is again
    if known and again:
        assert world.state.rejections == [TOLD]
        assert world.state.unable == {"a": "is not asked"}


@pytest.mark.parametrize(("verdict", "again"), [(FAILED, True), (BROKEN, True), (Verdict("timeout", "engine"), False)])
def test_an_engines_own_error_goes_to_another_engine_while_there_is_time(verdict: Verdict, again: bool) -> None:
    world = World()
    assert world.dispatcher._try_again(world.state, verdict, Meter(0.0), b"") is again
    world.state.retry_until = time.perf_counter() - 1.0
    assert not world.dispatcher._try_again(world.state, verdict, Meter(0.0), b"")


# --- what is learned of it ---


@pytest.mark.parametrize(
    ("reason", "unloaded", "counted"),
    [
        ("policy", "a", {("a", "b"): 1}),
        ("policy", None, {("b", "b"): 1}),
        *((reason, "a", {}) for reason in ("fallback", "pinned", "resumed", "shadow")),
    ],
)
def test_demand_is_what_the_policy_would_choose_without_load(
    reason: Reason, unloaded: str | None, counted: dict[tuple[str, str], int]
) -> None:
    world = World()
    world.decision = replace(world.decision, reason=reason, unloaded_arm=unloaded)
    world.dispatcher._make_decision(world.state)
    assert world.demand.decisions == counted
    assert world.state.decision is world.decision


@pytest.mark.parametrize(
    ("verdict", "request_", "told", "tpot_s", "doubts"),
    [
        (OK, {}, False, 0.02, 0),
        (OK, {"asks": frozenset({"min_p"})}, True, 0.02, 0),
        (OK, {"num_answers": 2}, False, None, 0),
        (REJECTED, {"asks": frozenset({"min_p"})}, False, None, 0),
        (Verdict("engine_error", "engine", doubtful=True), {}, False, None, 1),
    ],
)
def test_an_answer_tells_of_its_replica(
    verdict: Verdict, request_: dict[str, Any], told: bool, tpot_s: float | None, doubts: int
) -> None:
    world = World(request=request_)
    (replica,) = world.table.by_arm["a"]
    replica.in_flight, replica.foreign_in_flight = 3, 2
    lease = Lease(replica, probe=False, in_flight=2)
    running = world.dispatcher._report_health(world.state, lease, verdict, Outcome("ok", tpot_s=0.02))
    assert running == (3.5 if verdict is OK else None)  # the mean of two at its start and five at its end
    assert (lease.ok, lease.unreachable, lease.tpot_s) == (verdict.healthy, verdict.unreachable, tpot_s)
    assert (len(world.answered), len(world.state.doubts)) == (int(told), doubts)
    world.state.rejections = [TOLD]
    world.dispatcher._report_health(world.state, lease, OK, Outcome("ok"))
    assert world.answered[-1][0] == "a"


@pytest.mark.parametrize(("running", "cluster", "expected"), [(2.5, 0, ("p", 0)), (2.5, None, None), (None, 3, None)])
def test_an_attempt_is_what_observers_get(
    running: float | None, cluster: int | None, expected: tuple[str, int] | None
) -> None:
    world = World(request={"sampling": {"n": 2.0}})
    world.state.decision = replace(world.state.decision, cluster=cluster)
    world.state.number, outcome = 2, Outcome("ok")
    world.dispatcher._end(world.state, outcome, {"a": 1}, running)
    (made,) = world.attempts
    assert world.state.last is made
    assert (made.number, made.running, made.cluster, made.in_flight) == (2, running, expected, {"a": 1})
    assert (made.outcome, made.decision, made.sampling, made.stream) == (
        outcome,
        world.state.decision,
        {"n": 2.0},
        True,
    )


@pytest.mark.parametrize(("holder", "left"), [("http://b2", ["http://b2"]), ("http://gone", "all"), (None, "all")])
def test_a_stored_response_is_where_it_was_made(holder: str | None, left: Any) -> None:
    world = World()
    if holder is not None:
        world.dispatcher._responses.add("resp_1", holder, "")
    world.dispatcher._go_to_state(world.state, "resp_1")
    everywhere = {one.url for arm in ("a", "b") for one in world.table.by_arm[arm]}
    assert everywhere - {one.url for one in world.state.tried} == (everywhere if left == "all" else set(left))


class Sent:
    """Stands for an engine: how it was asked, and its answer."""

    def __init__(
        self, world: World, verdict: Verdict = OK, *, error: BaseException | None = None, **meter: Any
    ) -> None:
        self.world, self.verdict, self.error, self.meter = world, verdict, error, meter
        self.within_s, self.by_mode, self.started = list[float | None](), list[list[int]](), list[bool]()

    async def __call__(
        self, state: RequestState, lease: Lease, sink: Any, meter: Meter, within_s: float | None
    ) -> Verdict:
        self.within_s.append(within_s)
        self.by_mode.append([*lease.replica.by_mode])
        for name, value in self.meter.items():
            setattr(meter, name, value)
        if self.error is not None:
            raise self.error
        return self.verdict


SINK: Any = None


@pytest.mark.parametrize(
    ("deadline_s", "retry_s", "started", "within_s"),
    [(None, None, False, None), (5.0, None, False, 5.0), (None, 5.0, False, 5.0), (5.0, None, True, None)],
)
async def test_an_attempt_is_bounded_until_its_content_comes(
    deadline_s: float | None, retry_s: float | None, started: bool, within_s: float | None
) -> None:
    world, now = World(), time.perf_counter()
    world.with_request(deadline=None if deadline_s is None else now + deadline_s)
    world.state.retry_until = None if retry_s is None else now + retry_s
    world.state.started = started
    sent = Sent(world)
    assert await world.dispatcher._run_attempt(world.state, SINK, sent) is OK
    assert sent.within_s == [None if within_s is None else pytest.approx(within_s, abs=0.1)]


async def test_an_attempt_leaves_what_the_next_decision_needs() -> None:
    world, counted = World(), list[int]()
    world.with_request(key="k", count_tokens=counted.append)
    world.state.prefix = (1, 2)
    world.state.context = Context(np.zeros(1, np.float32), "f", sampled=True, truncated=True)
    sent = Sent(world, response_id="resp_1", failed=True, num_events=3, terminated=True)
    await world.dispatcher._run_attempt(world.state, SINK, sent)
    (replica,) = world.table.by_arm["a"]
    assert world.inserted == [((1, 2), "http://a", "k")]
    assert world.dispatcher._responses.holder("resp_1", "k") == "http://a"
    assert world.state.tried == {replica}
    assert (world.state.error_sent, world.state.num_events) == (True, 3)
    assert sent.by_mode == [[0, 0, 1]]
    assert replica.total_in_flight == 0
    (made,) = world.attempts
    assert (made.outcome.status, made.in_flight) == ("ok", {"a": 0, "b": 0})
    plain = World()
    sent = Sent(plain)
    await plain.dispatcher._run_attempt(plain.state, SINK, sent)
    assert sent.by_mode == [[1, 0, 0]]
    assert plain.inserted == []


@pytest.mark.parametrize(
    ("error", "status", "fault"),
    [(asyncio.CancelledError(), "cancelled", "client"), (ZeroDivisionError(), "router_error", "router")],
)
async def test_an_attempt_that_is_cut_off_is_recorded(error: BaseException, status: str, fault: str) -> None:
    world = World()
    with pytest.raises(type(error)):
        await world.dispatcher._run_attempt(world.state, SINK, Sent(world, error=error))
    (made,) = world.attempts
    assert (made.outcome.status, made.outcome.fault, made.running) == (status, fault, None)
    assert world.table.busy == 0


async def test_an_engine_that_has_gone_costs_an_attempt_and_another_is_tried() -> None:
    world = World()
    world.table.update("a", [])
    assert await world.dispatcher._run_attempt(world.state, SINK, Sent(world)) is NO_REPLICA
    assert [(one.outcome.status, one.running) for one in world.attempts] == [("engine_error", None)]


# --- the end ---


@pytest.mark.parametrize(
    ("doubts", "fault", "blamed"), [(1, "engine", 1), (2, "engine", 0), (1, "client", 0), (0, None, 0)]
)
def test_several_engines_that_fail_alike_do_so_by_the_request(doubts: int, fault: Any, blamed: int) -> None:
    world, counted = World(), list[int]()
    world.with_request(count_tokens=counted.append)
    replicas = [one for arm in ("a", "b") for one in world.table.by_arm[arm]][:doubts]
    world.state.doubts = [Lease(one, probe=False) for one in replicas]
    world.state.last, world.state.num_tokens = attempt(Outcome("engine_error", fault=fault)), 12
    world.dispatcher._finish(world.state)
    assert sum(not one.breaker.clear for one in replicas) == blamed
    assert world.metrics.requests == {("a", "engine_error"): 1}
    assert (counted, world.state.doubts) == ([12], [])


OUTCOME = Outcome("ok", prompt_tokens=7, output_tokens=5)


@pytest.mark.parametrize(
    ("outcome", "events", "ended", "request_", "tpot_s", "tokens"),
    [
        (OUTCOME, 0, True, {}, 0.0, 12),
        (Outcome("ok", prompt_tokens=7), 0, True, {}, 0.0, 7),
        (Outcome("ok", output_tokens=5), 0, True, {}, 0.0, 5),
        (Outcome("broken"), 3, False, {}, 0.0, 10 + 3),  # the prompt by its length, the output by its events
        (Outcome("broken", prompt_tokens=7), 3, False, {}, 0.0, 7 + 3),
        (Outcome("cancelled"), 3, False, {}, 0.0, 10 + 3),
        (Outcome("cancelled"), 0, False, {}, 0.0, 10),
        (Outcome("engine_error"), 0, False, {}, 0.0, 0),  # an engine's failure costs nothing
        (Outcome("broken"), 0, False, {}, 0.1, 0),
        (Outcome("cancelled"), 0, False, {}, 0.1, 10),  # a stream without content made nothing
        (Outcome("cancelled"), 0, False, {"stream": False}, 0.1, 10 + 20),
        (Outcome("cancelled"), 0, False, {"stream": False, "num_answers": 2}, 0.1, 10 + 40),
        (Outcome("cancelled"), 0, False, {"stream": False, "sampling": {"max_tokens": 8.0}}, 0.1, 10 + 8),
        (Outcome("cancelled"), 0, False, {"stream": False}, 0.0, 10),
    ],
    ids=str,
)
def test_a_key_is_charged_for_what_was_made(
    outcome: Outcome, events: int, ended: bool, request_: dict[str, Any], tpot_s: float, tokens: int
) -> None:
    world, meter = World(request=request_), Meter(0.0)
    meter.sent = time.perf_counter() - 2.05
    for _ in range(events):
        meter.observe_event(b'data: {"choices":[{"text":"x"}]}')
    meter.terminated = ended
    if ended and outcome.output_tokens:
        meter._fields = {"usage": {"completion_tokens": outcome.output_tokens}}
    for _ in range(2):
        before = world.state.num_tokens
        _count_tokens(world.state, outcome, meter, tpot_s)
        # Attempts that broke add up; the usage of a complete answer is that of all.
        assert world.state.num_tokens == (tokens if ended else before + tokens)


@pytest.mark.parametrize(
    ("pin", "possible", "error_sent", "tried", "can"),
    [
        (None, True, False, "a", True),
        ("a", True, False, "a", False),
        (None, False, False, "a", False),
        (None, True, True, "a", False),
        (None, True, False, "ab", False),
        (None, None, False, "a", False),
    ],
)
def test_a_stream_is_resumed_where_its_text_is_known(
    pin: str | None, possible: bool | None, error_sent: bool, tried: str, can: bool
) -> None:
    world = World()
    world.with_request(pin=pin)
    world.state.resume = None if possible is None else SimpleNamespace(possible=possible)  # type: ignore[assignment]
    world.state.error_sent = error_sent
    world.try_all(*tried)
    assert world.dispatcher._can_resume(world.state) is can


@pytest.mark.parametrize(
    ("verdict", "error_sent", "says"),
    [
        (BROKEN, False, b"engine_broken"),
        (Verdict("broken", "client"), False, b"engine_timeout"),
        (BROKEN, True, b""),
        (OK, False, b""),
    ],
)
async def test_a_stream_that_is_not_resumed_ends_with_an_error(verdict: Verdict, error_sent: bool, says: bytes) -> None:
    world, sent = World(), list[bytes]()
    world.state.error_sent = error_sent

    async def write(data: bytes) -> None:
        sent.append(data)

    sink: Any = SimpleNamespace(write=write)
    await world.dispatcher._resume_stream(world.state, sink, verdict)
    assert bool(sent) is bool(says)
    assert says in b"".join(sent)
