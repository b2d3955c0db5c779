"""Gates of live traffic against worlds whose values are known: what is better goes on, what is worse goes back."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from draftpick.policy_training.evaluation.confidence_sequence import Floats
from draftpick.policy_training.retraining import canary
from draftpick.policy_training.retraining.canary import STAGES, Limits, Step, evaluate_holdout, evaluate_stage
from draftpick.policy_training.retraining.canary_data import BaselineStats, CanaryExperiment
from tests.bench.gates import BAD, World, before, joined

RNG = np.random.default_rng(0)
BETTER = World.draw(0.08, np.random.default_rng(1))
WORSE = World.draw(-0.06, np.random.default_rng(2))
USUAL, EXPECTED = before(BETTER, *BETTER.serve(BETTER.active, 5000, RNG), RNG)
OF_WORSE = before(WORSE, *WORSE.serve(WORSE.active, 5000, RNG), RNG)
LAST, LIMITS = STAGES[-1], Limits()


def trial(world: World, n: int, share: float = LAST, seed: int = 0, since: float = 0.0) -> CanaryExperiment:
    return world.trial(n, share, OF_WORSE[1] if world is WORSE else EXPECTED, np.random.default_rng(seed), since)


def step(made: CanaryExperiment, next_share: float = 1.0, since: float = 0.0, limits: Limits = LIMITS) -> Step:
    return evaluate_stage(made, USUAL, since=since, next_share=next_share, limits=limits)


def refused(found: Step) -> set[str]:
    return {check.name for check in found.checks if not check.passed}


def test_what_is_better_goes_all_the_way_in_few_requests() -> None:
    seen: list[CanaryExperiment] = []
    for share, next_share in pairwise((*STAGES, 1.0)):
        since = float(sum(map(len, seen)))
        seen.append(trial(BETTER, round(80 / share), share, since=since))
        found = step(joined(seen), next_share, since)
        if share == LAST and found.action == "hold":
            seen.append(trial(BETTER, 600, share, seed=1, since=since + 160))
            found = step(joined(seen), next_share, since)
        assert found.action == "advance", found
    assert sum(map(len, seen)) < 10_000
    assert "saves" in found.why


def test_few_requests_are_held() -> None:
    for n in (0, 1, 20, 60):
        found = step(trial(BETTER, n))
        assert found.action == "hold", found
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["action"] == "hold"


def test_requests_of_an_earlier_stage_are_evidence_but_no_requests_of_this_one() -> None:
    seen = trial(BETTER, 4000, 0.1)
    assert step(seen, LAST).action == "advance"
    assert refused(step(seen, LAST, since=3900.0)) == {"requests"}


def test_a_stage_may_cost_all_requests_no_more_than_the_margin() -> None:
    """A policy that saves nothing goes to half of the requests, since a loss that matters is excluded, no further."""
    nothing = replace(BETTER, mean_s=BETTER.mean_s[:, :1] * np.ones(4))
    seen = trial(nothing, 6000, 0.1)
    assert step(seen, LAST).action == "advance"
    assert refused(step(seen, 1.0)) == {"gain"}
    assert refused(step(trial(WORSE, 6000, 0.1), LAST)) >= {"gain"}


def test_what_is_worse_is_rolled_back() -> None:
    found = evaluate_stage(trial(WORSE, 6000), OF_WORSE[0], since=0.0, next_share=1.0)
    assert (found.action, "not_worse" in refused(found)) == ("roll_back", True)
    assert found.why.startswith("saves -")


def test_what_stays_undecided_is_rolled_back() -> None:
    same = replace(BETTER, candidate=BETTER.active)
    found = step(trial(same, 900), limits=Limits(max_requests=400))
    assert (found.action, refused(found)) == ("roll_back", {"gain", "requests"})
    assert "undecided after" in found.why


@pytest.mark.parametrize(("how", "name"), [("failing", "failures"), ("stalling", "p99_tpot"), ("slower", "not_worse")])
def test_a_promoted_policy_that_goes_bad_goes_back(how: str, name: str) -> None:
    """It was well for 1,000 requests; then it is not, and the policy before, which keeps a tenth, is."""
    well, bad = (trial(world, 3000, 0.9, seed) for seed, world in enumerate((BETTER, BETTER.gone_bad(how))))
    assert evaluate_holdout(well, USUAL).action == "hold"
    found = evaluate_holdout(joined([well.head(1000), bad]), USUAL)
    assert (found.action, name in refused(found)) == ("roll_back", True)
    assert BAD[how] > 0


def test_a_longer_wait_for_the_first_token_goes_back() -> None:
    made = trial(BETTER, 3000, 0.9)
    stalled = (made.candidate.argmax(1) != made.active.argmax(1)) & (made.candidate.argmax(1) == made.arm)
    waits = stalled & (np.random.default_rng(1).random(3000) < 0.2)
    found = evaluate_holdout(replace(made, ttft_s=np.where(waits, 5.0, made.ttft_s)), USUAL)
    assert (found.action, refused(found)) == ("roll_back", {"p99_ttft"})


def test_a_world_that_gets_worse_for_both_is_nobodys_fault() -> None:
    """Everything takes twice as long, fails and stalls under either policy: going back would not help."""
    slow = replace(BETTER, mean_s=2 * BETTER.mean_s, fails=0.1, stalls=0.05)
    assert evaluate_holdout(trial(slow, 4000, 0.9), USUAL).action == "hold"
    assert step(trial(slow, 4000)).action in ("hold", "advance")


def test_failing_is_no_way_to_be_fast() -> None:
    """Who fails on the slow half of its requests answers the others fast, and gains nothing by it."""
    made = trial(replace(BETTER, candidate=BETTER.active), 4000)
    picky = made.by_candidate & (made.tpot_s > np.nanmedian(made.tpot_s))
    # Another arm is what the candidate would take, so that the two differ.
    other = np.roll(made.candidate, 1, axis=1)
    differs = replace(made, candidate=other, arm=np.where(made.by_candidate, (made.arm + 1) % 4, made.arm))
    found = step(replace(differs, failed=picky, tpot_s=np.where(picky, np.nan, made.tpot_s)))
    assert found.action == "roll_back"
    assert refused(found) >= {"not_worse", "failures"}


def test_looks_do_not_inflate() -> None:
    """No policy is better here, and both fail alike: few of a hundred rollouts are ever called better, worse or ill."""
    runs, called = 100, {"gain": 0, "harm": 0}
    limits = Limits(alpha=0.3, min_requests=25, max_p99_ratio=1.0, margin=0.0)
    for seed in range(runs):
        equal = replace(BETTER, mean_s=BETTER.mean_s[:, :1] * np.ones(4), fails=0.03)
        found = step(trial(equal, 1500, seed=seed), limits=limits)  # the highest stake of all looks counts
        names = refused(found)
        called["gain"] += "gain" not in names
        called["harm"] += bool(names - {"gain", "requests"})
    # 15 and 30 in a hundred are expected at most; so many come once in 200.
    assert called["gain"] <= 25
    assert called["harm"] <= 42


# --- the rules, with bounds and probabilities given ---


def four_requests(**changes: object) -> CanaryExperiment:
    """Four requests, of which the candidate decides half: two on its arm 0, at 1 and 2 s, two on the other's arm 1."""
    ours = np.asarray([True, True, False, False])
    given = {
        "time": np.arange(4.0), "share": np.full(4, 0.5), "by_candidate": ours,
        "candidate": np.tile([1.0, 0.0], (4, 1)), "active": np.tile([0.0, 1.0], (4, 1)), "arm": (~ours).astype(int),
        "expected_s": np.full((4, 2), 0.05), "tpot_s": np.asarray([0.02, 0.02, 0.05, 0.05]), "ttft_s": np.ones(4),
        "failed": np.zeros(4, bool), "key_weight": np.ones(4),
    }  # fmt: skip
    return CanaryExperiment(**{**given, **changes})  # type: ignore[arg-type]


BASELINE = BaselineStats(scale_s=0.1, mean=0.5, low=0.0, high=1.0, ttft_p99_s=2.0)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the bounds of the gain, as a share of the time, and the probability of each harm."""

    def set_to(low: float = 0.1, high: float = 0.2, *, p: Sequence[float] = (1.0,) * 5) -> None:
        left = list(p)
        monkeypatch.setattr(canary, "confidence_bounds", lambda *_: (low * BASELINE.mean, high * BASELINE.mean))
        monkeypatch.setattr(canary, "p_value", lambda *_: left.pop(0))

    return set_to


@pytest.mark.parametrize(
    ("low", "high", "next_share", "action", "missing"),
    [
        (0.001, 0.2, 1.0, "advance", set()),
        (0.0, 0.2, 1.0, "hold", {"gain"}),
        (-0.19, 0.2, 0.1, "advance", set()),  # a tenth of all requests may take 20 % longer
        (-0.21, 0.2, 0.1, "hold", {"gain"}),
        (-0.03, 0.2, 0.5, "advance", set()),
        (-0.05, 0.2, 0.5, "hold", {"gain"}),
        (-0.5, -0.02, 0.5, "hold", {"gain"}),
        (-0.5, -0.021, 0.5, "roll_back", {"gain", "not_worse"}),
        (-0.5, 0.01, 0.5, "hold", {"gain"}),
    ],
)
def test_a_stage_is_passed_by_its_lower_bound_and_failed_by_its_upper(
    given: Callable[..., None], low: float, high: float, next_share: float, action: str, missing: set[str]
) -> None:
    given(low, high)
    found = evaluate_stage(four_requests(), BASELINE, since=-1.0, next_share=next_share, limits=Limits(min_requests=2))
    assert (found.action, refused(found)) == (action, missing)
    gain = next(check for check in found.checks if check.name == "gain")
    assert found.checks[0].limit == -0.02
    assert (gain.value, gain.limit) == pytest.approx((low, 0.0 if next_share == 1.0 else -0.02 / next_share))


@pytest.mark.parametrize(
    ("since", "limits", "low", "action", "requests"),
    [
        (-1.0, {"min_requests": 2}, 0.1, "advance", (2, 2)),
        (0.0, {"min_requests": 2}, 0.1, "hold", (1, 2)),  # after the stage began
        (-1.0, {"min_requests": 3}, 0.1, "hold", (2, 3)),
        (-1.0, {"min_requests": 1, "max_requests": 2}, 0.1, "advance", (2, 1)),
        (-1.0, {"min_requests": 1, "max_requests": 2}, -0.1, "roll_back", (2, 2)),
        (-1.0, {"min_requests": 1, "max_requests": 3}, -0.1, "hold", (2, 1)),
        (0.0, {"min_requests": 1, "max_requests": 2}, -0.1, "roll_back", (1, 2)),  # of all stages
    ],
)
def test_a_stage_needs_requests_of_its_own_and_ends_in_time(
    given: Callable[..., None], since: float, limits: dict[str, int], low: float, action: str, requests: tuple[int, int]
) -> None:
    given(low, 0.2)
    found = evaluate_stage(four_requests(), BASELINE, since=since, next_share=1.0, limits=Limits(**limits))
    assert found.action == action
    counted = found.checks[-1]
    assert (counted.value, counted.limit) == requests
    savings = found.checks[0].why
    assert found.why == (f"undecided after 2 requests: {savings}" if action == "roll_back" else savings)


HARMS = ("failures", "p99_tpot", "p99_ttft")


@pytest.mark.parametrize(
    ("p", "bad"),
    [
        ((0.010001, 1, 1, 1, 1), []),
        ((0.009999, 1, 1, 1, 1), ["failures"]),
        ((1, 0.0, 0.02, 1, 1), []),  # both must be improbable
        ((1, 0.02, 0.0, 1, 1), []),
        ((1, 0.001, 0.002, 1, 1), ["p99_tpot"]),
        ((1, 1, 1, 0.002, 0.001), ["p99_ttft"]),
        ((0, 0, 0, 0, 0), [*HARMS]),
    ],
)
def test_each_harm_has_a_sixth_of_the_error(given: Callable[..., None], p: Sequence[float], bad: list[str]) -> None:
    for holdout in (False, True):
        given(p=p)
        if holdout:
            found = evaluate_holdout(four_requests(), BASELINE, Limits(alpha=0.06))
        else:
            limits = Limits(min_requests=1, alpha=0.06)
            found = evaluate_stage(four_requests(), BASELINE, since=-1.0, next_share=1.0, limits=limits)
        assert [check.name for check in found.checks if not check.passed] == bad
        assert found.action == ("roll_back" if bad else "hold" if holdout else "advance")
        named = {check.name: check for check in found.checks}
        assert found.why == ("; ".join(named[name].why for name in bad) or named["not_worse"].why)
        assert [named[name].limit for name in HARMS] == [pytest.approx(0.01)] * 3


def test_a_tail_is_longer_than_a_hundredth_and_than_the_other_policys(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[list[float], list[float]]]()

    def p_value(x: Floats, bound: Floats) -> float:
        asked.append((x.tolist(), bound.tolist()))
        return 1.0

    monkeypatch.setattr(canary, "p_value", p_value)
    slow = np.asarray([0.13, 0.12, 0.02, 0.126])
    evaluate_holdout(four_requests(tpot_s=slow, key_weight=np.full(4, 0.5)), BASELINE)
    _, more_than_the_other, more_than_usual, *_ = asked
    assert more_than_the_other == ([2.0, 0.0, 0.0, -2.0], [4.0] * 4)
    assert more_than_usual == ([1.99, -0.01, -0.01, -0.01], [0.02] * 4)


def test_what_was_seen_is_said_in_shares() -> None:
    """Each of two requests counts twice: the candidate failed on one of them, and both of its own were faster."""
    failed, slow = np.asarray([True, False, False, False]), np.asarray([0.13, 0.12, 0.02, 0.126])
    trial = four_requests(failed=failed, tpot_s=slow, ttft_s=np.asarray([2.4, 2.6, 2.6, 0.1]))
    checks = {check.name: check.why for check in evaluate_holdout(trial, BASELINE).checks}
    assert checks["failures"] == "fails in 50.00% of the requests, the other policy in 0.00%"
    rates = "in 50.00% of the requests, the other policy in 50.00%"
    assert checks["p99_tpot"] == f"p99 tpot: beyond 0.125 s {rates}"
    assert checks["p99_ttft"] == f"p99 ttft: beyond 2.5 s {rates}"


def test_a_saving_is_said_as_a_share_of_the_active_policys_time(given: Callable[..., None]) -> None:
    """0.02 s against 0.05 s of the other; of stages with other shares, the surer ones count more."""
    given(0.1, 0.9)
    (savings, *_) = evaluate_holdout(four_requests(), BASELINE).checks
    assert savings.why == "saves 60.0% of the time, anytime-valid bounds 10.0% to 90.0%"
    given(0.1, 0.9)
    share = np.asarray([0.5, 0.1, 0.5, 0.1])
    trial = four_requests(share=share)
    saved = BASELINE.savings(trial)
    weight = 1.0 / saved.max_below
    expected = float((weight * saved.per_request).sum() / (weight * saved.baseline).sum())
    assert f"saves {expected:.1%} of the time" in evaluate_holdout(trial, BASELINE).checks[0].why
    assert f"{expected:.1%}" != f"{float(saved.per_request.sum() / saved.baseline.sum()):.1%}"


def test_without_requests_nothing_is_known() -> None:
    found = evaluate_holdout(four_requests().head(0), BASELINE)
    assert (found.action, found.why) == ("hold", "no data yet")
    assert [check.why for check in found.checks[1:]] == [
        "fails unknown", "p99 tpot: beyond 0.125 s unknown", "p99 ttft: beyond 2.5 s unknown",
    ]  # fmt: skip
