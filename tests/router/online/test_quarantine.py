"""An arm whose drafter is silently lost is taken out within 50 requests, and probed back; others are left in peace."""

import math
import random
from typing import Any

import pytest

from draftpick.router.config.sections import QuarantineConfig
from draftpick.router.online.quarantine import AcceptanceMonitor


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def watch(clock: Clock, **config: float) -> AcceptanceMonitor:
    return AcceptanceMonitor(["a", "b"], QuarantineConfig(quarantine_s=60, **config), clock)


def head(rng: random.Random) -> float:
    """Acceptance length of an EAGLE head: always some gain."""
    return max(1.0, rng.gauss(2.0, 0.4))


def copier(rng: random.Random) -> float:
    """Of a drafter that copies: much on a third of the requests, next to nothing on the others."""
    return rng.uniform(2.5, 5.0) if rng.random() < 0.35 else rng.uniform(1.0, 1.02)


@pytest.mark.parametrize("usual", [head, copier])
@pytest.mark.parametrize("seed", range(10))
def test_a_lost_drafter_is_out_within_fifty_requests(clock: Clock, usual: object, seed: int) -> None:
    rng, watched = random.Random(seed), watch(clock)
    for _ in range(400):
        watched.observe("a", usual(rng), 64)  # type: ignore[operator]
    assert watched.state()["a"] == "ok"
    for _ in range(50):
        watched.observe("a", 1.0, 64)
    assert watched.state() == {"a": "quarantined", "b": "ok"}
    assert watched.suspects == {"a"}
    assert not watched.admits("a", 0)


def test_a_run_of_twelve_collapsed_answers_is_a_lost_drafter(clock: Clock) -> None:
    """Each is taken to come three times in ten at least, and 0.3 ** 12 is less than one in a million."""
    watched = watch(clock)
    for tau in [2.0] * 100 + [1.0] * 11 + [2.0] + [1.0] * 11:
        watched.observe("a", tau, 64)
    assert watched.state()["a"] == "ok"
    watched.observe("a", 1.0, 64)
    assert watched.state()["a"] == "quarantined"


@pytest.mark.parametrize("usual", [head, copier])
def test_a_healthy_arm_stays(clock: Clock, usual: object) -> None:
    rng, watched = random.Random(1), watch(clock)
    for _ in range(20_000):
        watched.observe("a", usual(rng), 64)  # type: ignore[operator]
    assert watched.quarantined == 0


def lose(watched: AcceptanceMonitor) -> None:
    for _ in range(100):
        watched.observe("a", 2.0, 64)
    while watched.admits("a", 0):
        watched.observe("a", 1.0, 64)


def test_it_is_probed_after_a_while_with_few_requests_at_once(clock: Clock) -> None:
    watched = watch(clock)
    lose(watched)
    clock.now += 60
    assert watched.state()["a"] == "probed"
    assert [watched.admits("a", n) for n in (0, 1, 2)] == [True, True, False]


def test_it_comes_back_when_its_drafts_are_accepted_again(clock: Clock) -> None:
    watched = watch(clock)
    lose(watched)
    clock.now += 60
    watched.observe("a", 1.9, 64)
    assert watched.state()["a"] == "ok"
    assert watched.admits("a", 100)
    assert not watched.suspects


def test_probes_that_fail_double_the_quarantine(clock: Clock) -> None:
    watched = watch(clock)
    lose(watched)
    clock.now += 60
    for _ in range(4):
        watched.observe("a", 1.0, 64)
    assert watched.state()["a"] == "quarantined"
    clock.now += 119
    assert not watched.admits("a", 0)
    clock.now += 1
    assert watched.admits("a", 0)


def test_answers_that_began_before_the_quarantine_say_nothing(clock: Clock) -> None:
    watched = watch(clock)
    lose(watched)
    watched.observe("a", 2.0, 64)
    assert watched.state()["a"] == "quarantined"


def test_two_good_shadows_in_a_row_end_a_quarantine(clock: Clock) -> None:
    watched = watch(clock)
    lose(watched)
    for tau, shadow in ((2.0, True), (1.0, True), (2.0, True), (2.0, False), (2.0, True)):
        watched.observe("a", tau, 64, shadow=shadow)
        assert watched.state()["a"] == "quarantined"
    watched.observe("a", 2.0, 64, shadow=True)
    assert watched.state()["a"] == "ok"


def test_an_arm_without_drafts_is_never_suspected(clock: Clock) -> None:
    watched = watch(clock)
    for _ in range(500):
        watched.observe("a", 1.0, 64)
        watched.observe("b", None, 64)
    assert watched.state() == {"a": "ok", "b": "ok"}


def test_short_answers_say_nothing(clock: Clock) -> None:
    watched = watch(clock)
    for _ in range(100):
        watched.observe("a", 2.0, 64)
    for _ in range(100):
        watched.observe("a", 1.0, 3)
    assert watched.state()["a"] == "ok"


def test_it_can_be_switched_off(clock: Clock) -> None:
    watched = watch(clock, enabled=False)
    for tau in [2.0] * 100 + [1.0] * 100:
        watched.observe("a", tau, 64)
    assert watched.state()["a"] == "ok"


def two_keys(clock: Clock) -> AcceptanceMonitor:
    """A monitor that has seen good answers to two keys."""
    watched = watch(clock)
    for i in range(200):
        watched.observe("a", 2.0, 64, key=f"{i % 2}")
    return watched


def test_one_key_alone_quarantines_no_arm_that_others_use(clock: Clock) -> None:
    watched = two_keys(clock)
    for _ in range(500):
        watched.observe("a", 1.0, 64, key="0")
    assert watched.state()["a"] == "ok"
    for _ in range(5):
        watched.observe("a", 1.0, 64, key="1")
    assert watched.state()["a"] == "quarantined"


def test_a_key_whose_others_are_gone_is_enough(clock: Clock) -> None:
    watched = two_keys(clock)
    clock.now = 900.0
    for _ in range(50):
        watched.observe("a", 1.0, 64, key="0")
    assert watched.state()["a"] == "quarantined"


def test_probes_of_one_key_alone_keep_no_arm_out(clock: Clock) -> None:
    watched = two_keys(clock)
    for i in range(40):
        watched.observe("a", 1.0, 64, key=f"{i % 2}")
    clock.now = 61.0
    for _ in range(100):
        watched.observe("a", 1.0, 64, key="0")
    assert watched.state()["a"] == "probed"
    watched.observe("a", 2.0, 64, key="1")
    assert watched.state()["a"] == "ok"


def test_what_one_key_gains_is_not_expected_of_all(clock: Clock) -> None:
    watched = watch(clock)
    for i in range(4000):  # one key sends twenty times as much, and its drafts are nearly all accepted
        watched.observe("a", *((12.0, 64) if i % 20 else (1.9, 64)), key="copies" if i % 20 else "usual")
    for _ in range(60):
        watched.observe("a", 1.9, 64, key="usual")
        watched.observe("a", 1.9, 64, key="other")
    assert watched.state()["a"] == "ok"


def until_out(watched: AcceptanceMonitor, tau: float = 1.0, tokens: int = 64, **more: Any) -> int:
    """After how many such answers the arm is out; 0: not within 200."""
    for number in range(1, 201):
        watched.observe("a", tau, tokens, **more)
        if watched.state()["a"] != "ok":
            return number
    return 0


def seen(clock: Clock, *taus: float, **config: float) -> AcceptanceMonitor:
    watched = watch(clock, **config)
    for tau in taus:
        watched.observe("a", tau, 64)
    return watched


@pytest.mark.parametrize(("before", "out_after"), [(40, 12), (39, 0)])
def test_forty_answers_are_needed_to_know_what_is_usual(clock: Clock, before: int, out_after: int) -> None:
    watched = seen(clock, *[2.0] * before)
    # The last of them that was missing is a collapsed one, from which on collapses count as usual for a while.
    assert (until_out(watched) == out_after) is (before == 40)


@pytest.mark.parametrize(("tokens", "out_after"), [(8, 12), (7, 0), (None, 0)])
def test_answers_from_eight_tokens_on_count(clock: Clock, tokens: Any, out_after: int) -> None:
    assert until_out(seen(clock, *[2.0] * 100), tokens=tokens) == out_after


@pytest.mark.parametrize(("tau", "out_after"), [(1.19, 12), (1.21, 0)])
def test_a_fifth_of_the_usual_gain_is_a_collapse(clock: Clock, tau: float, out_after: int) -> None:
    assert until_out(seen(clock, *[2.0] * 100), tau) == out_after


@pytest.mark.parametrize(("gain", "suspected"), [(0.051, True), (0.049, False)])
def test_an_arm_that_gains_next_to_nothing_has_nothing_to_lose(clock: Clock, gain: float, suspected: bool) -> None:
    assert bool(until_out(seen(clock, *[1.0 + gain] * 100))) is suspected


@pytest.mark.parametrize(("probability", "out_after"), [(1e-6, 12), (1e-3, 6), (0.05, 3)])
def test_the_length_of_a_run_follows_from_the_configured_probability(
    clock: Clock, probability: float, out_after: int
) -> None:
    assert until_out(seen(clock, *[2.0] * 100, false_alarm_probability=probability)) == out_after


def test_who_collapses_often_may_do_so_longer(clock: Clock) -> None:
    """Half of its answers collapse: with a margin of 0.05, 24 in a row are improbable enough."""
    watched = seen(clock, *[2.0, 1.0] * 2000, 2.0)
    assert watched.state()["a"] == "ok"
    assert until_out(watched) == math.ceil(math.log(1e-6) / math.log(0.55))


def test_who_hardly_ever_gains_is_lost_in_the_end(clock: Clock) -> None:
    """One answer in forty gains; a collapse is taken to come 98 times in a hundred at most."""
    watched = seen(clock, *[11.0, *[1.0] * 39] * 100, 11.0, false_alarm_probability=0.05)
    assert watched.state()["a"] == "ok"
    assert until_out(watched) == math.ceil(math.log(0.05) / math.log(0.98))


def test_what_is_usual_follows_slowly(clock: Clock) -> None:
    """An answer counts once fifty later ones have come, and then for a two-hundredth."""
    watched = seen(clock, *[2.0] * 400)
    for _ in range(50):
        watched.observe("a", 3.0, 64)
    history = watched._arms["a"].histories[0]
    assert history.gain == pytest.approx(1.0)
    watched.observe("a", 3.0, 64)
    assert history.gain == pytest.approx(1.005)


def test_events_say_what_was_usual_and_for_how_long_it_is_out(clock: Clock) -> None:
    told = list[tuple[str, str, str]]()
    watched = AcceptanceMonitor(["a"], QuarantineConfig(quarantine_s=60), clock, lambda *event: told.append(event))
    for tau in [2.5] * 100 + [1.0] * 12:
        watched.observe("a", tau, 64)
    clock.now = 60.0
    watched.observe("a", 2.5, 64)
    assert told == [
        (
            "arm_quarantined",
            "engine a: its drafts are hardly accepted any more (baseline gain 1.50); no requests for 60 s",
            "a",
        ),
        ("arm_readmitted", "engine a: its drafts are accepted again; readmitted", "a"),
    ]
    assert watched.quarantined == 1


def test_quarantines_double_up_to_the_longest_and_begin_anew_after_recovery(clock: Clock) -> None:
    told = list[str]()
    config = QuarantineConfig(quarantine_s=60, max_quarantine_s=200)
    watched = AcceptanceMonitor(["a"], config, clock, lambda kind, text, arm: told.append(text[-6:]))
    for tau in [2.0] * 100 + [1.0] * 12:
        watched.observe("a", tau, 64)
    for wait_s in (60, 120, 200):
        clock.now += wait_s
        for _ in range(3):
            watched.observe("a", 1.0, 64)
            assert watched.state()["a"] == "probed"
        watched.observe("a", 1.0, 64)
        assert watched.state()["a"] == "quarantined"
    clock.now += 200
    watched.observe("a", 2.0, 64)
    assert watched.state()["a"] == "ok"
    for tau in [2.0] * 51 + [1.0] * 12:
        watched.observe("a", tau, 64)
    assert told == ["r 60 s", " 120 s", " 200 s", " 200 s", "mitted", "r 60 s"]


def test_another_kind_of_requests_is_judged_by_its_own_history(clock: Clock) -> None:
    watched = seen(clock, *[2.0] * 100)
    for _ in range(200):
        watched.observe("a", 1.0, 64, 1)
    assert watched.state()["a"] == "ok"
    clock.now = 1.0
    for _ in range(12):
        watched.observe("a", 1.0, 64, 0)
    assert watched.state()["a"] == "quarantined"
    clock.now = 61.0
    watched.observe("a", 1.5, 64, 2)  # of a kind without a history: more than a fifth of the best one's gain
    assert watched.state()["a"] == "ok"


def test_an_arm_that_nobody_configured_is_passed_over(clock: Clock) -> None:
    watched = watch(clock)
    watched.observe("c", 2.0, 64)
    assert watched.state() == {"a": "ok", "b": "ok"}


def test_a_keys_own_gain_is_known_from_ten_answers_on(clock: Clock) -> None:
    """Others gain ten times as much; one that gains little from the first is no sign of a lost drafter."""
    for own, out in ((10, False), (0, True)):
        watched = watch(clock)
        for i in range(400):
            watched.observe("a", 11.0, 64, key=f"{i % 2}")
        for _ in range(own):
            watched.observe("a", 1.9, 64, key="new")
        watched._arms["a"].evidence.clear()
        watched.observe("a", 1.9, 64, key="new")
        assert bool(watched._arms["a"].evidence.sum) is out
