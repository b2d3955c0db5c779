"""What records tell of two policies at once: unbiased whatever is expected, and without noise where they agree."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from draftpick.policy_training.retraining.canary import evaluate_stage
from draftpick.policy_training.retraining.canary_data import (
    MIN_EARLIER,
    BaselineStats,
    CanaryExperiment,
    ExpectedTpot,
    canary_experiment,
)
from draftpick.router.types import Reason, Record
from tests.bench.gates import ARMS as MANY
from tests.bench.gates import POOL, World, before
from tests.policy_training.bandit import ARMS, Bandit
from tests.policy_training.retraining.test_pipeline import BANDIT, record

RNG = np.random.default_rng(5)
WORLD = World.draw(0.08, np.random.default_rng(1))
USUAL, EXPECTED = before(WORLD, *WORLD.serve(WORLD.active, 5000, RNG), RNG)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("expected", ["model", "wrong"])
def test_the_time_saved_is_unbiased_whatever_was_expected(share: float, expected: str) -> None:
    expected_s = EXPECTED if expected == "model" else np.full((POOL, MANY), 0.07)
    trial = WORLD.trial(60_000, share, expected_s, np.random.default_rng(2))
    x, least, most, _ = USUAL.savings(trial)
    assert ((x >= -least) & (x <= most)).all()
    assert x.mean() / USUAL.mean == pytest.approx(WORLD.gain(USUAL), abs=4 * x.std() / USUAL.mean / np.sqrt(len(x)))


def test_what_both_would_have_done_alike_says_nothing_and_adds_no_noise() -> None:
    same = replace(WORLD, candidate=WORLD.active).trial(2000, 0.3, EXPECTED, np.random.default_rng(3))
    assert np.abs(USUAL.savings(same)[0]).max() < 1e-12
    assert np.abs(same.excess_rate(same.failed)[0]).max() < 1e-12
    model, flat = (
        USUAL.savings(WORLD.trial(4000, 0.3, expected_s, np.random.default_rng(4)))[0].std()
        for expected_s in (EXPECTED, np.full((POOL, MANY), 0.02))
    )
    assert model < flat


def test_weights_of_both_add_up_and_have_bounds() -> None:
    trial = WORLD.trial(3000, 0.1, EXPECTED, np.random.default_rng(6))
    ours, theirs = trial.weights
    assert 0.1 * ours + 0.9 * theirs == pytest.approx(np.ones(3000))
    happened = trial.tpot_s > np.nanmedian(trial.tpot_s)
    x, least = trial.excess_rate(happened)
    assert (x >= -least).all()


def test_roles_may_be_exchanged() -> None:
    trial = WORLD.trial(500, 0.2, EXPECTED, np.random.default_rng(8))
    swapped = trial.swapped()
    assert USUAL.savings(swapped)[0] == pytest.approx(-USUAL.savings(trial)[0])
    assert (swapped.share[0], swapped.by_candidate.sum()) == (0.8, 500 - trial.by_candidate.sum())


def test_what_is_no_trial_is_refused() -> None:
    trial = WORLD.trial(10, 0.5, EXPECTED, np.random.default_rng(7))
    with pytest.raises(ValueError, match="share of 0 or 1"):
        replace(trial, share=np.ones(10))
    with pytest.raises(ValueError, match="equal length"):
        replace(trial, by_candidate=np.ones(9, bool))
    with pytest.raises(ValueError, match="no TPOT or TTFT is known"):
        BaselineStats.from_earlier(np.full(3, np.nan), np.ones(3), np.ones(3))


def one_request(**changes: object) -> CanaryExperiment:
    """The candidate, which decides a quarter, took its arm 0 where the active policy takes 1: 0.05 s, 0.03 expected."""
    given = {
        "time": np.ones(1), "share": np.full(1, 0.25), "by_candidate": np.ones(1, bool), "candidate": np.eye(2)[:1],
        "active": np.eye(2)[1:], "arm": np.zeros(1, np.int64), "expected_s": np.asarray([[0.03, 0.06]]),
        "tpot_s": np.full(1, 0.05), "ttft_s": np.ones(1), "failed": np.zeros(1, bool), "key_weight": np.full(1, 0.5),
    }  # fmt: skip
    return CanaryExperiment(**{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "saved"),
    [
        ({}, 0.6 - (0.3 + 4 * (0.5 - 0.3))),  # four times what was not expected, since one in four is drawn so
        ({"tpot_s": np.full(1, 9.0)}, 0.6 - (0.3 + 4 * (1.0 - 0.3))),  # longer times than the usual P99 are clipped
        ({"failed": np.ones(1, bool), "tpot_s": np.full(1, np.nan)}, 0.6 - (0.3 + 4 * (1.0 - 0.3))),
        ({"expected_s": np.asarray([[0.0, 0.5]])}, 0.8 - (0.1 + 4 * (0.5 - 0.1))),  # and so are expectations
        ({"arm": np.ones(1, np.int64), "by_candidate": np.zeros(1, bool)}, 0.6 + 4 / 3 * (0.5 - 0.6) - 0.3),
    ],
)
def test_savings_of_one_request_by_hand(changes: dict[str, object], saved: float) -> None:
    usual = BaselineStats(scale_s=0.1, mean=0.5, low=0.1, high=0.8, ttft_p99_s=1.0)
    found = usual.savings(one_request(**changes))
    assert found.per_request == pytest.approx([saved])
    # Between the longest time on one policy and the shortest on the other, and half as sure by the key's weight.
    assert found.max_below == pytest.approx([(0.7 + 0.9 / 0.25) / 0.5])
    assert found.max_above == pytest.approx([(0.7 + 0.8 / 0.25) / 0.5])


def test_requests_without_a_time_save_nothing_unless_they_failed() -> None:
    usual = BaselineStats(scale_s=0.1, mean=0.5, low=0.1, high=0.8, ttft_p99_s=1.0)
    assert not len(usual.savings(one_request(tpot_s=np.full(1, np.nan))).per_request)


def test_the_excess_of_an_event_counts_by_the_share_that_could_have_had_it() -> None:
    x, least = one_request().excess_rate(np.ones(1, bool))
    assert x == pytest.approx([4.0])
    assert least == pytest.approx([1 / 0.75 / 0.5])
    assert one_request().excess_rate(np.zeros(1, bool))[0] == [0.0]
    theirs = one_request(arm=np.ones(1, np.int64), by_candidate=np.zeros(1, bool))
    assert theirs.excess_rate(np.ones(1, bool))[0] == pytest.approx([-4 / 3])


def test_what_was_usual_by_hand() -> None:
    """P99 of the times is their unit; predictions lie between their 5 % and 95 % quantiles."""
    times = np.arange(101) / 100.0
    found = BaselineStats.from_earlier(np.where(times == 0.5, np.nan, times), 2 * times, times)
    scale_s = float(np.quantile(np.delete(times, 50), 0.99))
    assert (found.scale_s, found.ttft_p99_s) == pytest.approx((scale_s, 1.98))
    assert (found.low, found.high) == pytest.approx((0.05 / scale_s, 0.95 / scale_s))
    assert found.mean == pytest.approx(np.delete(np.minimum(times / scale_s, 1.0), 50).mean())


NOT_DRAWN: tuple[Reason, ...] = ("fallback", "pinned", "resumed", "shadow")


def both(i: int, at: float, policy: str = "old") -> Record:
    """Request i of the bandit: `new` would have taken the next arm."""
    made = record(i, i % 4, policy, at=at)
    sure = {name: {arm: float(arm == ARMS[(i + turn) % 4]) for arm in ARMS} for turn, name in enumerate(("old", "new"))}
    other = "new" if policy == "old" else "old"
    decision = replace(
        made.decision, arm=ARMS[(i + (policy == "new")) % 4], probabilities=sure[policy],
        policy_share=0.25 if policy == "new" else 0.75, other_policy_probabilities={other: sure[other]},
    )  # fmt: skip
    return replace(made, decision=decision)


def test_records_make_a_trial() -> None:
    earlier = [record(i, i % 4, "old", at=float(i + 1)) for i in range(MIN_EARLIER)]
    shadows = [record(i, (i + 1) % 4, "old", "shadow", at=float(i + 1)) for i in range(0, MIN_EARLIER, 3)]
    later = [both(i, 200.0 + i, "new" if i % 5 == 0 else "old") for i in range(200)]
    left_out = [
        replace(later[1], attempt=2),
        replace(later[1], outcome=replace(later[1].outcome, status="cancelled")),
        *(replace(later[1], decision=replace(later[1].decision, reason=reason)) for reason in NOT_DRAWN),
        replace(later[1], decision=replace(later[1].decision, other_policy_probabilities=None)),
        replace(later[1], decision=replace(later[1].decision, other_policy_probabilities={"newer": {}})),
        *(replace(later[1], decision=replace(later[1].decision, policy_share=share)) for share in (0.0, 1.0)),
    ]
    found = canary_experiment([*earlier, *shadows, *left_out, *later], 150.0, "new")
    assert found is not None
    trial, usual = found
    assert len(trial) == 200
    assert trial.by_candidate.sum() == 40
    assert set(trial.share) == {0.25}
    assert (trial.candidate.argmax(1) != trial.active.argmax(1)).all()
    assert (
        np.where(trial.by_candidate, trial.candidate.argmax(1), trial.active.argmax(1)).tolist() == trial.arm.tolist()
    )
    assert 0.0 < usual.mean < 1.0
    order = [sorted(ARMS).index(arm) for arm in ARMS]
    near = Bandit.matrix(BANDIT).time_s[:200] / BANDIT.tokens[:200, None]
    assert np.corrcoef(trial.expected_s[:, order].ravel(), near.ravel())[0, 1] > 0.8


def test_an_engine_that_stands_in_for_the_active_policy_is_compared_with() -> None:
    earlier = [record(i, i % 4, "old", at=float(i + 1)) for i in range(MIN_EARLIER)]
    later = [both(i, 200.0 + i, "new" if i % 5 == 0 else "old") for i in range(40)]
    aside = [
        replace(r, decision=replace(r.decision, policy="fixed:plain"))
        if r.decision.policy == "old"
        else replace(r, decision=replace(r.decision, other_policy_probabilities={"fixed:plain": {"plain": 1.0}}))
        for r in later[20:]
    ]
    found = canary_experiment([*earlier, *later[:20], *aside], 150.0, "new")
    assert found is not None
    assert len(found[0]) == 40


def test_a_trial_waits_for_requests_and_for_what_was_usual() -> None:
    earlier = [record(i, i % 4, "old", at=float(i + 1)) for i in range(MIN_EARLIER)]
    later = [both(i, 200.0 + i) for i in range(20)]
    assert canary_experiment(earlier, 150.0, "new") is None
    assert canary_experiment([*earlier[1:], *later], 150.0, "new") is None
    assert canary_experiment([*earlier, *later], 150.0, "new") is not None


def test_what_no_policy_drew_or_has_no_time_is_not_what_was_usual() -> None:
    earlier = [record(i, i % 4, "old", at=float(i + 1)) for i in range(MIN_EARLIER)]
    later = [both(i, 200.0 + i) for i in range(20)]
    slow = replace(earlier[0], outcome=replace(earlier[0].outcome, tpot_s=99.0))
    others = [
        *(replace(slow, decision=replace(slow.decision, reason=reason)) for reason in NOT_DRAWN[:3]),
        replace(slow, outcome=replace(slow.outcome, tpot_s=None)),
        replace(slow, outcome=replace(slow.outcome, status="broken")),
        replace(slow, outcome=replace(slow.outcome, status="timeout")),
        replace(slow, context=None),
    ]
    found, same = (canary_experiment([*more, *earlier, *later], 150.0, "new") for more in ([], others))
    assert found is not None
    assert same is not None
    assert same[1] == found[1]
    assert (same[0].expected_s == found[0].expected_s).all()


def test_a_key_with_most_requests_decides_no_trial_alone() -> None:
    trial = WORLD.trial(4000, 0.3, EXPECTED, np.random.default_rng(9))
    greedy = np.arange(4000) % 5 > 0
    weighted = replace(trial, key_weight=np.where(greedy, 0.25, 1.0))
    (x, least, *_), (same, wider, *_) = USUAL.savings(trial), USUAL.savings(weighted)
    assert (same == x).all()
    known = trial.failed | np.isfinite(trial.tpot_s)
    assert wider == pytest.approx(least * np.where(greedy[known], 4.0, 1.0))
    assert (weighted.excess_rate(trial.failed)[1] == trial.excess_rate(trial.failed)[1] / weighted.key_weight).all()
    # What one key alone makes look bad is weaker evidence than the same of all.
    bad = np.where(greedy & trial.by_candidate, 3.0, 1.0) * trial.tpot_s
    harms = [evaluate_stage(replace(one, tpot_s=bad), USUAL, since=0.0, next_share=0.5) for one in (trial, weighted)]
    assert harms[0].checks[0].value < harms[1].checks[0].value


@pytest.mark.parametrize(("number", "own"), [(9, False), (10, True)])
def test_an_arm_with_ten_earlier_requests_has_an_expectation_of_its_own(number: int, own: bool) -> None:
    x = np.random.default_rng(0).normal(size=(50 + number, 2)).astype(np.float32)
    arm = np.repeat([0, 1], [50, number])
    tpot_s = np.where(arm == 1, 0.09, 0.01)
    expected = ExpectedTpot.fit(x, arm, tpot_s, 3)(x)
    assert expected[:, 0] == pytest.approx(0.01, abs=0.002)
    assert expected[:, 1] == pytest.approx(0.09 if own else tpot_s.mean(), abs=0.003)
    assert expected[:, 2] == pytest.approx(tpot_s.mean(), abs=0.001)


def test_no_time_is_expected_to_be_negative() -> None:
    x = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    model = ExpectedTpot.fit(x, np.zeros(40, np.int64), 0.05 + 0.04 * x[:, 0].astype(np.float64), 1)
    assert model(np.full((1, 1), -9.0, np.float32)).tolist() == [[0.0]]


def test_only_the_last_thousand_requests_are_what_is_usual() -> None:
    earlier = [record(i % 900, i % 4, "old", at=float(i + 1)) for i in range(1001)]
    later = [both(i, 2000.0 + i) for i in range(20)]
    slow = replace(earlier[0], outcome=replace(earlier[0].outcome, ttft_s=50.0, tpot_s=9.0))
    next_one = replace(earlier[1], outcome=replace(earlier[1].outcome, ttft_s=50.0))
    usual, same, other = (
        found[1]
        for made in ([*earlier, *later], [slow, *earlier[1:], *later], [earlier[0], next_one, *earlier[2:], *later])
        if (found := canary_experiment(made, 1500.0, "new")) is not None
    )
    assert same.scale_s == usual.scale_s
    assert same.ttft_p99_s == usual.ttft_p99_s
    assert other.mean == usual.mean


@pytest.mark.parametrize(
    ("outcome", "counted"),
    [
        ({"status": "engine_error"}, True),
        ({"status": "timeout", "fault": "client"}, False),
        ({"status": "broken", "fault": "engine"}, True),
        ({"status": "client_error", "fault": "client"}, False),
    ],
)
def test_what_a_client_ended_is_no_part_of_a_trial(outcome: dict[str, Any], counted: bool) -> None:
    earlier = [record(i, i % 4, "old", at=float(i + 1)) for i in range(MIN_EARLIER)]
    later = [both(i, 200.0 + i) for i in range(20)]
    later[3] = replace(later[3], outcome=replace(later[3].outcome, tpot_s=None, **outcome))
    found = canary_experiment([*earlier, *later], 150.0, "new")
    assert found is not None
    assert len(found[0]) == 19 + counted
    assert found[0].failed.sum() == counted


@pytest.mark.parametrize(("began", "requests"), [(199.0, 20), (200.0, 19), (219.0, None)])
def test_a_trial_begins_after_its_start(began: float, requests: int | None) -> None:
    earlier = [record(i, i % 4, "old", at=float(i + 1)) for i in range(MIN_EARLIER)]
    later = [both(i, 200.0 + i) for i in range(20)]
    found = canary_experiment([*earlier, *later], began, "new")
    assert (None if found is None else len(found[0])) == requests


def test_other_features_are_no_part_of_a_trial() -> None:
    earlier = [record(i, i % 4, "old", at=float(i + 1)) for i in range(MIN_EARLIER)]
    later = [both(i, 200.0 + i) for i in range(20)]
    assert later[5].context is not None
    later[5] = replace(later[5], context=replace(later[5].context, featurizer="others"))
    later[6] = replace(later[6], context=None)
    found = canary_experiment([*earlier, *later], 150.0, "new")
    assert found is not None
    assert len(found[0]) == 18
    assert found[0].time.tolist() == [200.0 + i for i in range(20) if i not in (5, 6)]
