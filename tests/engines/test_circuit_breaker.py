"""The circuit breaker: what opens it, how it is probed, how it comes back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from draftpick.engines.circuit_breaker import BreakerConfig, CircuitBreaker

CONFIG = BreakerConfig(consecutive_failures=3, base_ejection_s=1, max_ejection_s=4, slow_start_s=3)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(CONFIG, clock)


def ask(breaker: CircuitBreaker, ok: bool | None) -> None:
    """One request that passes and ends so."""
    assert breaker.admits(0)
    breaker.end(ok=ok, probe=breaker.begin())


def test_failures_in_a_row_open_it(breaker: CircuitBreaker) -> None:
    for ok in (False, False, True, False, False):
        ask(breaker, ok)
    assert breaker.state == "closed"
    ask(breaker, False)
    assert breaker.state == "open"
    assert not breaker.admits(0)


def fail_until_open(breaker: CircuitBreaker) -> int:
    """How many failures in a row open it, of at most 100."""
    for number in range(1, 101):
        ask(breaker, False)
        if breaker.state == "open":
            return number
    return 0


def test_a_large_share_of_failures_opens_it(clock: Clock) -> None:
    breaker = CircuitBreaker(BreakerConfig(consecutive_failures=1000), clock)
    assert fail_until_open(breaker) == 14  # each counts a twentieth: 1 - 0.95^14 > 0.5


def test_after_recovery_a_smaller_share_of_failures_opens_it_again(clock: Clock) -> None:
    breaker = CircuitBreaker(BreakerConfig(consecutive_failures=1000, slow_start_s=0), clock)
    fail_until_open(breaker)
    clock.now += 1
    ask(breaker, True)
    assert fail_until_open(breaker) == 8  # from a quarter: 1 - 0.75 * 0.95^8 > 0.5


def test_an_ejection_without_failures_leaves_no_share_of_them(clock: Clock) -> None:
    breaker = CircuitBreaker(BreakerConfig(consecutive_failures=1000, slow_start_s=0), clock)
    breaker.trip()
    clock.now += 1
    ask(breaker, True)
    assert fail_until_open(breaker) == 14


def test_as_configured_by_default(clock: Clock) -> None:
    breaker = CircuitBreaker(BreakerConfig(), clock)
    assert fail_until_open(breaker) == 3
    waits = []
    for _ in range(7):
        start = clock.now
        while not breaker.admits(0):
            clock.now += 1
        waits.append(clock.now - start)
        breaker.end(ok=False, probe=breaker.begin())
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    clock.now += 30
    ask(breaker, True)
    clock.now += 5.5
    assert [breaker.admits(n) for n in (45, 46)] == [True, False]
    clock.now += 0.5
    assert breaker.admits(1000)


@pytest.mark.parametrize(
    ("field", "rejected", "least"),
    [
        ("consecutive_failures", 0, 1),
        ("failure_rate", 0, 0.01),
        ("failure_rate", 1.01, 1),
        ("base_ejection_s", 0, 0.01),
        ("max_ejection_s", 0, 0.01),
        ("slow_start_s", -0.01, 0),
        ("outlier_factor", 1, 1.01),
    ],
)
def test_settings_have_bounds(field: str, rejected: float, least: float) -> None:
    with pytest.raises(ValidationError, match=field):
        BreakerConfig(**{field: rejected})
    assert getattr(BreakerConfig(**{field: least}), field) == least


def test_an_engine_that_is_seen_again_may_be_probed_at_once(breaker: CircuitBreaker, clock: Clock) -> None:
    breaker.half_open()
    assert breaker.state == "closed"
    breaker.trip()
    breaker.half_open()
    assert breaker.state == "half_open"
    clock.now += 1
    breaker.half_open()
    ask(breaker, True)
    assert breaker.state == "closed"


def test_one_probe_at_a_time_decides(breaker: CircuitBreaker, clock: Clock) -> None:
    breaker.trip()
    clock.now += 1
    probe = breaker.begin()
    assert not breaker.begin()
    breaker.end(ok=True, probe=False)  # a request that panic let through
    assert breaker.state == "half_open"
    breaker.end(ok=False, probe=probe)
    assert (breaker.state, breaker.opened) == ("open", 2)


def test_every_second_failure_in_few_requests_does_not(breaker: CircuitBreaker) -> None:
    for i in range(20):
        ask(breaker, i % 2 == 0)
    assert breaker.state == "closed"


def test_one_request_probes_it_and_brings_it_back(breaker: CircuitBreaker, clock: Clock) -> None:
    breaker.trip()
    clock.now += 1
    assert breaker.state == "half_open"
    probe = breaker.begin()
    assert probe
    assert not breaker.admits(0)
    breaker.end(ok=True, probe=probe)
    assert breaker.state == "closed"


def test_a_probe_that_fails_doubles_the_wait_up_to_a_bound(breaker: CircuitBreaker, clock: Clock) -> None:
    waits = []
    breaker.trip()
    for _ in range(4):
        start = clock.now
        while not breaker.admits(0):
            clock.now += 0.5
        waits.append(clock.now - start)
        breaker.end(ok=False, probe=breaker.begin())
    assert waits == [1.0, 2.0, 4.0, 4.0]
    assert breaker.opened == 5


def test_a_probe_that_says_nothing_lets_another_one_pass(breaker: CircuitBreaker, clock: Clock) -> None:
    breaker.trip()
    clock.now += 1
    ask(breaker, None)
    assert breaker.state == "half_open"
    assert breaker.admits(0)


def test_requests_from_before_it_opened_decide_nothing(breaker: CircuitBreaker) -> None:
    old = [breaker.begin() for _ in range(3)]
    breaker.trip()
    for ok, probe in zip((True, False, True), old, strict=True):
        breaker.end(ok=ok, probe=probe)
    assert breaker.state == "open"


def test_after_recovery_requests_come_back_slowly(breaker: CircuitBreaker, clock: Clock) -> None:
    breaker.trip()
    clock.now += 1
    ask(breaker, True)
    assert [breaker.admits(n) for n in (0, 1)] == [True, False]
    clock.now += 2
    assert [breaker.admits(n) for n in (3, 4)] == [True, False]
    clock.now += 1
    assert breaker.admits(1000)


def test_after_recovery_failures_are_counted_anew(breaker: CircuitBreaker, clock: Clock) -> None:
    breaker.trip()
    clock.now += 1
    ask(breaker, True)
    clock.now += 3
    for _ in range(2):
        ask(breaker, False)
        assert breaker.state == "closed"
    ask(breaker, False)
    assert breaker.state == "open"


@given(st.lists(st.tuples(st.sampled_from([True, False, None]), st.floats(0, 5)), max_size=80))
def test_it_never_shuts_for_good(steps: list[tuple[bool | None, float]]) -> None:
    clock = Clock()
    breaker = CircuitBreaker(CONFIG, clock)
    for ok, passes_s in steps:
        clock.now += passes_s
        if breaker.admits(0):
            breaker.end(ok=ok, probe=breaker.begin())
    clock.now += CONFIG.max_ejection_s
    assert breaker.admits(0)


@given(st.lists(st.tuples(st.sampled_from([True, True, True, False, None]), st.floats(0, 3)), max_size=80))
def test_a_clear_one_need_not_be_asked(steps: list[tuple[bool | None, float]]) -> None:
    clock = Clock()
    asked, spared = CircuitBreaker(CONFIG, clock), CircuitBreaker(CONFIG, clock)
    for ok, passes_s in steps:
        clock.now += passes_s
        admitted = asked.admits(0)
        assert (spared.clear or spared.admits(0)) == admitted
        assert asked.clear == spared.clear
        if admitted:
            asked.end(ok=ok, probe=asked.begin())
            probe = not spared.clear and spared.begin()
            if not (ok and spared.clear):
                spared.end(ok=ok, probe=probe)
        assert asked.state == spared.state


def test_it_is_clear_again_long_after_a_failure(breaker: CircuitBreaker) -> None:
    ask(breaker, False)
    assert not breaker.clear
    for _ in range(100):
        ask(breaker, True)
    assert breaker.clear
