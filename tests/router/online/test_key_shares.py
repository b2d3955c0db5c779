"""How much one API key counts in what is learned for all."""

import math

import pytest

from draftpick.router.online.key_shares import MAX_EVIDENCE, MIN_WEIGHT, KeyedEvidence, KeyShares


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_answers_without_a_key_or_of_one_alone_count_in_full() -> None:
    for key in ("", "only"):
        shares = KeyShares(Clock())
        assert {shares.observe(key) for _ in range(500)} == {1.0}
        assert not shares.several


def test_a_key_with_many_requests_has_half_the_weight() -> None:
    shares = KeyShares(Clock())
    weights = {"greedy": 0.0, "modest": 0.0}
    for i in range(2000):
        key = "modest" if i % 10 == 0 else "greedy"
        weights[key] += shares.observe(key)
    assert shares.several
    assert weights["greedy"] == pytest.approx(weights["modest"], rel=0.1)
    assert weights["modest"] == 200


def test_keys_with_equal_requests_count_in_full() -> None:
    shares = KeyShares(Clock())
    assert min([shares.observe(f"{i % 3}") for i in range(300)][10:]) == 1.0


def test_a_key_that_sends_nearly_all_is_still_learned_from() -> None:
    shares = KeyShares(Clock())
    for _ in range(3):
        shares.observe("seldom")
    assert [shares.observe("nearly all") for _ in range(1000)][-1] == MIN_WEIGHT


def test_a_key_that_sends_nearly_all_has_half_the_weight_beside_keys_with_some_requests() -> None:
    shares = KeyShares(Clock())
    weights = {"nearly all": 0.0, "some": 0.0}
    for i in range(20_000):
        key = "some" if i % 500 == 0 else "nearly all"
        weights[key] += shares.observe(key) if i > 10_000 else 0.0 * shares.observe(key)
    assert weights["nearly all"] == pytest.approx(weights["some"], rel=0.5)


def test_who_stays_away_is_forgotten() -> None:
    clock = Clock()
    shares = KeyShares(clock)
    for _ in range(30):
        shares.observe("gone")
    shares.observe("here")
    clock.now = 60.0
    for _ in range(30):
        last = shares.observe("here")
    assert shares.several
    assert last == pytest.approx(30 / math.e / (30 + 1 / math.e), rel=1e-3)
    clock.now = 600.0
    assert shares.observe("here") == 1.0
    assert not shares.several


def test_one_key_alone_gives_no_more_than_its_part_of_the_evidence() -> None:
    evidence = KeyedEvidence()
    for _ in range(100):
        evidence.add("one", 1.0)
    assert evidence.exceeds(12.0, several=False)
    assert not evidence.exceeds(12.0, several=True)
    evidence.add("other", 12.0 * (1.0 - MAX_EVIDENCE))
    assert not evidence.exceeds(12.0, several=True)
    evidence.add("other", 0.1)
    assert evidence.exceeds(12.0, several=True)
    evidence.clear()
    assert (evidence.sum, evidence.by_key) == (0.0, {})


def test_several_keys_decide_together() -> None:
    evidence = KeyedEvidence()
    for key in ("a", "b"):
        evidence.add(key, 6.0)
    assert not evidence.exceeds(12.0, several=True)
    evidence.add("a", 0.1)
    assert evidence.exceeds(12.0, several=True)


@pytest.mark.parametrize(("others", "weight"), [(0, 1.0), (1, 0.05), (9, 0.05), (10, 0.01), (500, 0.5), (2000, 1.0)])
def test_ten_answers_of_others_are_enough_to_share_with(others: int, weight: float) -> None:
    shares = KeyShares(Clock())
    for _ in range(others):
        shares.observe("others")
    for _ in range(1000):
        last = shares.observe("one")
    assert last == pytest.approx(weight)


@pytest.mark.parametrize(("after_s", "several"), [(137.0, True), (140.0, False)])
def test_a_tenth_of_an_answer_is_forgotten(after_s: float, several: bool) -> None:
    """Of one answer, e^(-t / 60) is left: a tenth after 138 s."""
    clock = Clock()
    shares = KeyShares(clock)
    shares.observe("gone")
    clock.now = after_s
    shares.observe("here")
    assert shares.several is several


@pytest.mark.parametrize(("sum_", "exceeds"), [(12.0, False), (12.001, True)])
@pytest.mark.parametrize("several", [False, True])
def test_evidence_must_be_more_than_what_is_needed(sum_: float, several: bool, exceeds: bool) -> None:
    evidence = KeyedEvidence()
    for key in "abcd":
        evidence.add(key, sum_ / 4)
    assert evidence.exceeds(12.0, several) is exceeds
