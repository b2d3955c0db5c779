"""The offline gate against worlds whose values are known: what is better passes, what is not does not."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from draftpick.policy_training.data.logged_feedback import Floats, LoggedFeedback
from draftpick.policy_training.evaluation.ope import reward_model
from draftpick.policy_training.retraining.gates import OFFLINE
from draftpick.policy_training.retraining.gates.base import Check, Gate, NotMade, Verdict, evaluate, skipped
from draftpick.policy_training.retraining.gates.offline import (
    LoggedEvidence,
    dr_gain,
    effective_records,
    replay_gain,
    worst_slice,
)
from tests.bench.gates import ARMS, EXPLORE, POOL, World

BETTER = World.draw(0.08, np.random.default_rng(1))
WORSE = World.draw(-0.06, np.random.default_rng(2))
EQUAL = replace(BETTER, candidate=BETTER.active)


def judged(world: World, n: int = 20_000, seed: int = 0, **more: Any) -> Verdict:
    """Offline; `more` may hold functions of the rows."""
    rows, arm, tpot_s = world.serve(world.active, n, np.random.default_rng(seed))
    logged = LoggedFeedback(arm, -tpot_s, world.pi(world.active, EXPLORE)[rows, arm])
    q = reward_model(world.contexts[rows], logged, ARMS)
    given = {name: of(rows) for name, of in more.items()}
    slices = world.clusters[rows].astype(str).tolist()
    pi_candidate, pi_active = (world.pi(arms)[rows] for arms in (world.candidate, world.active))
    return evaluate(OFFLINE, LoggedEvidence(logged, pi_candidate, pi_active, q, 0, slices, **given))


def refused(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.checks if not check.passed}


@pytest.mark.parametrize("seed", range(3))
def test_offline_passes_what_is_better(seed: int) -> None:
    verdict = judged(BETTER, seed=seed)
    assert verdict.passed, verdict
    gain = next(check for check in verdict.checks if check.name == "dr_gain")
    assert 0 < gain.value < 0.08 / (1 - EXPLORE) + 0.01  # a lower bound, of the policy without exploration


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("world", [WORSE, EQUAL], ids=["worse", "equal"])
def test_offline_refuses_what_is_not_better(world: World, seed: int) -> None:
    assert "dr_gain" in refused(judged(world, seed=seed))


def test_offline_refuses_a_verdict_on_too_few_records() -> None:
    elsewhere = replace(BETTER, candidate=(BETTER.active + 1) % ARMS)  # only exploration ever took these arms
    verdict = judged(elsewhere, n=4000)
    assert "effective_records" in refused(verdict)
    assert next(c for c in verdict.checks if c.name == "effective_records").value < 200


def test_offline_refuses_a_slow_slice() -> None:
    """A candidate that gains elsewhere much more than it loses where plain is the best arm."""
    mean_s = 0.03 * np.where(BETTER.clusters[:, None] == 0, [1.0, 1.2, 1.2, 1.2], [1.0, 0.6, 0.9, 0.9])
    world = World(BETTER.contexts, mean_s, BETTER.clusters, np.zeros(POOL, np.int64), np.ones(POOL, np.int64))
    verdict = judged(world)
    assert refused(verdict) == {"worst_slice"}
    worst = next(check for check in verdict.checks if check.name == "worst_slice")
    assert worst.value == pytest.approx(0.2, abs=0.1)
    assert worst.why.startswith("0:")


def test_many_slices_are_no_more_often_slow_by_chance() -> None:
    """Both arms are equal, so one slice in twenty is slower at the level of a single one."""
    rng, n = np.random.default_rng(3), 4000
    arm, pi = rng.integers(2, size=n), np.eye(2)[np.ones(n, np.int64)]
    logged = LoggedFeedback(arm, -rng.lognormal(0.0, 0.3, n), np.full(n, 0.5))
    slices = (np.arange(n) % 40).astype(str).tolist()
    evidence = LoggedEvidence(logged, pi, pi, np.full((n, 2), logged.reward.mean()), 0, slices)
    assert worst_slice(evidence).passed
    assert not all(
        worst_slice(replace(evidence, slices=["x" if s == one else "rest" for s in slices])).passed
        for one in set(slices)
    )


def test_replay_is_checked_where_it_is_given() -> None:
    def some(rows: Any) -> Floats:
        times: Floats = BETTER.mean_s[rows]
        times[1000:] = np.nan
        return times

    assert [c.name for c in judged(BETTER, paired=some).checks][-1] == "replay_gain"
    assert judged(BETTER, paired=some).passed
    assert "replay_gain" in refused(judged(BETTER, paired=lambda rows: some(rows)[:, ::-1]))
    with pytest.raises(ValueError, match="replay some"):
        judged(BETTER, paired=lambda rows: np.full((len(rows), ARMS), np.nan))


def exact(factors: dict[str, float], rows: int = 40) -> LoggedEvidence:
    """A log without noise, half of it of each arm: on a slice the candidate, arm 1, takes so many times what arm 0,
    the active policy and default, takes."""
    slices = [name for name in factors for _ in range(rows)]
    times = np.asarray([[1.0, factors[name]] for name in slices])
    arm = np.arange(len(slices)) % 2
    logged = LoggedFeedback(arm, -times[np.arange(len(slices)), arm], np.full(len(slices), 0.5))
    candidate, active = np.eye(2)[np.ones_like(arm)], np.eye(2)[np.zeros_like(arm)]
    return LoggedEvidence(logged, candidate, active, -times, 0, slices)


def test_a_gain_is_the_share_of_the_time_that_is_saved() -> None:
    for factor, value, proven, harmless in (
        (0.8, 0.2, True, True),
        (1.0, 0.0, False, True),
        (1.25, -0.25, False, False),
    ):
        evidence = exact({"x": factor})
        for check, given in ((dr_gain, evidence), (replay_gain, replace(evidence, paired=-evidence.q))):
            for require, passed in ((True, proven), (False, harmless)):
                found = check(replace(given, require_significance=require))
                assert found is not None
                assert (found.passed, found.limit) == (passed, 0.0)
                assert found.value == pytest.approx(value)
                assert found.why == f"gains {value:.1%} of the time ({value:.1%} to {value:.1%})"


@pytest.mark.parametrize(
    ("factors", "worst", "why"),
    [
        ({"a": 0.9, "b": 1.0}, 0.0, "no slice is slower than the default arm; 2 of 2 slices judged"),
        ({"a": 1.01, "b": 1.015}, 0.015, "b: 1.5% slower than the default arm (at least 1.5%); 2 of 2 slices judged"),
        ({"a": 1.03, "b": 0.5}, 0.03, "a: 3.0% slower than the default arm (at least 3.0%); 2 of 2 slices judged"),
    ],
)
def test_the_worst_slice_may_be_two_percent_slower(factors: dict[str, float], worst: float, why: str) -> None:
    found = worst_slice(exact(factors, 60))
    assert (found.passed, found.why) == (worst < 0.02, why)
    assert found.value == pytest.approx(worst)


def test_a_slice_is_judged_by_25_effective_records_of_both_arms() -> None:
    for rows, judged in ((48, 0), (50, 2)):
        assert worst_slice(exact({"a": 1.5, "b": 1.5}, rows)).why.endswith(f"{judged} of 2 slices judged")


def test_effective_records_are_200_unless_live_traffic_proves_the_gain() -> None:
    for rows, require, passed in ((398, True, False), (400, True, True), (398, False, True)):
        found = effective_records(replace(exact({"a": 1.0}, rows), require_significance=require))
        assert found is not None
        assert (found.passed, found.limit) == (passed, 200)
        assert found.value == pytest.approx(rows / 2)


def test_twenty_requests_under_all_arms_decide_instead_of_weighted_records() -> None:
    evidence = exact({"a": 0.8})
    for n, paired in ((19, False), (20, True)):
        given = replace(evidence, paired=np.where(np.arange(40)[:, None] < n, -evidence.q, np.nan))
        assert given.is_paired is paired
        assert [check(given) is None for check in (effective_records, dr_gain)] == [paired] * 2
    assert not evidence.is_paired
    assert replay_gain(evidence) is None


def test_against_a_policy_without_time_nothing_is_saved() -> None:
    evidence = exact({"a": 1.0})
    assert (evidence.resampled(np.ones(40), np.zeros(40), 20) == -np.inf).all()


def gate(found: Check | NotMade | None) -> Gate[None]:
    return Gate("rewording", lambda inputs: found)


def test_verdicts_join_and_what_is_not_known_is_null() -> None:
    verdict, more = judged(BETTER), Check("rewording", False, float("nan"), 0.95, "saves nothing")
    joined = verdict.joined(evaluate([gate(more)], None))
    assert not joined.passed
    assert verdict.joined(evaluate([gate(replace(more, passed=True))], None)).passed
    assert json.loads(json.dumps(joined.as_json(), allow_nan=False))["checks"][-1]["value"] is None


def test_gates_that_do_not_judge_say_why_or_leave_it_to_another() -> None:
    assert evaluate([gate(NotMade("no data"))], None) == Verdict(True, (), {"rewording": "no data"})
    assert evaluate([gate(None)], None) == Verdict(True, ())
    assert skipped([gate(None)], "too late") == Verdict(True, (), {"rewording": "too late"})


def test_every_check_bears_the_name_of_its_gate() -> None:
    for n in (10, 1000):
        paired = np.where(np.arange(20_000)[:, None] < n, 1.0, np.nan) * np.ones(ARMS)
        verdict = judged(BETTER, paired=lambda rows, paired=paired: paired * BETTER.mean_s[rows])
        assert {check.name for check in verdict.checks} <= {gate.name for gate in OFFLINE}


@pytest.mark.parametrize(("excess", "passed"), [(0.0199, True), (0.0201, False)])
def test_a_slice_may_be_slower_by_the_margin(excess: float, passed: bool) -> None:
    found = worst_slice(exact({"a": 1.0 + excess}, 60))
    assert found.passed is passed
    assert (found.name, found.limit) == ("worst_slice", 0.02)


@pytest.mark.parametrize(("rows", "judged"), [(50, 1), (49, 0), (48, 0)])
def test_a_slice_needs_25_effective_records_of_either_arm(rows: int, judged: int) -> None:
    found = worst_slice(exact({"a": 2.0}, rows))
    assert found.why.endswith(f"{judged} of 1 slices judged")
    assert found.passed is (judged == 0)


@pytest.mark.parametrize(("rows", "require", "passed"), [(400, True, True), (398, True, False), (398, False, True)])
def test_a_verdict_needs_200_effective_records(rows: int, require: bool, passed: bool) -> None:
    found = effective_records(replace(exact({"a": 1.0}, rows), require_significance=require))
    assert found is not None
    assert (found.passed, found.limit) == (passed, 200.0)
    assert found.value == pytest.approx(rows / 2)
    assert found.why.startswith(f"{rows} records have an effective sample size of {rows // 2} ")


@pytest.mark.parametrize("complete", [19, 20])
def test_twenty_paired_requests_take_the_place_of_weighted_records(complete: int) -> None:
    evidence = exact({"a": 0.5})
    times = -evidence.q.copy()
    times[complete:, 1] = np.nan
    paired = replace(evidence, paired=times)
    assert paired.paired_rows.sum() == complete
    assert (dr_gain(paired) is None) is (effective_records(paired) is None) is (complete == 20)
    assert not replace(evidence, paired=None).is_paired
    assert replay_gain(evidence) is None


def test_a_gain_is_judged_by_consecutive_blocks() -> None:
    """Of correlated rows, the interval is that of their blocks: here two, one of which is all good, one all bad."""
    evidence = exact({"good": 0.5, "bad": 1.4}, 100)
    candidate, active = (evidence.tpot_terms(pi) for pi in (evidence.pi_candidate, evidence.pi_active))
    few, many = (replace(evidence, blocks=blocks).resampled(candidate, active) for blocks in (2, 100))
    assert (few.min(), few.max()) == pytest.approx((-0.4, 0.5))
    assert len(many) == 2000
    assert -0.4 < many.min() < many.mean() < many.max() < 0.5
    assert many.mean() == pytest.approx(0.05, abs=0.01)
    assert (evidence.resampled(candidate, active) == many).all()
