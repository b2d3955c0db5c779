import numpy as np
import pytest

from draftpick.engines.pool.acceptance import LEVELS, Acceptance, OwnAcceptance, worth_of

EVEN = [0.5] * LEVELS
LENGTH = 4


def decode(own: OwnAcceptance, rate: float, steps: int, level: int = 3, seed: int = 0) -> None:
    """Score drafts each of whose tokens is accepted with probability `rate`."""
    random = np.random.default_rng(seed)
    for _ in range(steps):
        accepted = int((random.random(LENGTH) < rate).cumprod().sum())
        came = [1] * accepted + [0]
        own.score([1] * LENGTH, [level] * LENGTH, came)


def test_survival_is_that_of_all_requests_at_a_confidence() -> None:
    shared = Acceptance(LENGTH, EVEN)
    decode(OwnAcceptance(shared), 0.8, 3000)
    assert OwnAcceptance(shared).survival([3] * LENGTH) == pytest.approx([0.8**i for i in range(1, 5)], rel=0.06)
    assert OwnAcceptance(shared).survival([9])[0] == pytest.approx(0.5)


def test_a_request_departs_from_the_others_within_a_few_steps() -> None:
    shared = Acceptance(LENGTH, EVEN)
    decode(OwnAcceptance(shared), 0.7, 1000)
    hopeless, sure = OwnAcceptance(shared), OwnAcceptance(shared)
    decode(hopeless, 0.0, 5)
    decode(sure, 1.0, 5)
    assert hopeless.gain() < 0.5 * shared.gain()
    assert sure.gain() > 1.3 * shared.gain()
    assert hopeless.survival([3])[0] < 0.6 * shared.rate(3, 0)


def test_a_forecast_counts_as_so_many_steps() -> None:
    shared = Acceptance(LENGTH, EVEN)
    decode(OwnAcceptance(shared), 0.5, 1000)
    usual, light, heavy = (OwnAcceptance(shared) for _ in range(3))
    light.foresee(3.5, weight=1)
    heavy.foresee(3.5, weight=8)
    assert usual.gain() < light.gain() < heavy.gain()
    decode(heavy, 0.0, 20)
    assert heavy.gain() < 0.7 * usual.gain()


@pytest.mark.parametrize(("promised", "rate"), [(5.0, 0.0), (1.0, 1.0)])
def test_a_forecast_that_proves_wrong_is_left_within_a_few_steps(promised: float, rate: float) -> None:
    shared = Acceptance(LENGTH, EVEN)
    decode(OwnAcceptance(shared), 0.5, 1000)
    misled, plain, right = (OwnAcceptance(shared) for _ in range(3))
    misled.foresee(promised, weight=32)
    right.foresee(1.0 + LENGTH * rate, weight=32)
    for own in (misled, plain, right):
        decode(own, rate, 4)
    assert misled.gain() == pytest.approx(plain.gain(), rel=0.2)
    assert misled.odds() == pytest.approx(plain.odds(), rel=0.25)
    assert abs(right.gain() - LENGTH * rate) < 0.8 * abs(plain.gain() - LENGTH * rate)


def test_the_reported_acceptance_length_is_that_of_full_drafts() -> None:
    own = OwnAcceptance(Acceptance(LENGTH, EVEN))
    assert own.tau() is None
    decode(own, 0.6, 2000, seed=5)
    tau = own.tau()
    assert tau == pytest.approx(1 + sum(0.6**i for i in range(1, 5)), rel=0.05)
    assert own.scored == 2000


def test_tokens_that_did_not_come_yet_are_unknown() -> None:
    own = OwnAcceptance(Acceptance(LENGTH, EVEN))
    for _ in range(500):
        own.score([1, 1, 1, 1], [0] * 4, [1, 1])  # two tokens came: the draft goes on beyond them
    tau = own.tau()
    assert tau is not None
    assert tau > 3  # the first two were always right, nothing is known of the others


def test_first_tokens_alone_show_whether_a_resting_drafter_would_earn() -> None:
    shared = Acceptance(LENGTH, EVEN)
    decode(OwnAcceptance(shared), 0.5, 1000)
    good, bad = OwnAcceptance(shared), OwnAcceptance(shared)
    good.score_first([3] * 12, [True] * 12)
    bad.score_first([3] * 12, [False] * 12)
    assert bad.gain() < 0.5 * shared.gain() < shared.gain() < good.gain()


def test_the_worth_of_a_draft_is_what_it_gains_beyond_its_verification() -> None:
    assert worth_of([0.9, 0.6, 0.2], 0.5) == pytest.approx(0.5)
    shared = Acceptance(LENGTH, EVEN)
    for _ in range(500):
        shared.note_draft([0.9, 0.6])
        shared.note_draft([0.2])
    assert [shared.worth(price) for price in (0.0, 0.5, 2.0)] == pytest.approx([0.85, 0.25, 0.0], abs=0.02)


def test_a_drafter_that_was_only_scored_is_worth_what_its_confidence_says() -> None:
    shared = Acceptance(LENGTH, EVEN)
    for _ in range(100):
        own = OwnAcceptance(shared)
        own.score_first([15], [True])
        own.score_first([1], [False])
    assert shared.worth(0.8) == pytest.approx(0.08, abs=0.04)
