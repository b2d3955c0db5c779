"""Gates against worlds whose values are known: what is better passes, what is not does not, however often one looks."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from policy_training.gates import STAGES, Limits, Step, Stream, Verdict, gain_bounds, offline, online, scale_of, scaled
from policy_training.ope import Floats, Logged, reward_model
from tests.bench.gates import ARMS, EXPLORE, POOL, World, first

BETTER = World.draw(0.08, np.random.default_rng(1))
WORSE = World.draw(-0.06, np.random.default_rng(2))
EQUAL = replace(BETTER, candidate=BETTER.active)
SCALE_S = scale_of(BETTER.serve(BETTER.active, 5000, np.random.default_rng(3))[2])
LAST = STAGES[-2]


def judged(world: World, n: int = 20_000, seed: int = 0, **more: Any) -> Verdict:
    """Offline; `more` may hold functions of the rows."""
    rows, arm, tpot_s = world.serve(world.active, n, np.random.default_rng(seed))
    logged = Logged(arm, -tpot_s, world.pi(world.active, EXPLORE)[rows, arm])
    q = reward_model(world.contexts[rows], logged, ARMS)
    given = {name: of(rows) for name, of in more.items()}
    slices = world.clusters[rows].astype(str).tolist()
    return offline(
        logged, world.pi(world.candidate)[rows], world.pi(world.active)[rows], q, default=0, slices=slices, **given
    )


def refused(verdict: Verdict | Step) -> set[str]:
    return {check.name for check in verdict.checks if not check.passed}


def streams(world: World, share: float, n: int, seed: int = 0) -> tuple[Stream, Stream]:
    """n requests of the candidate, and as many of the active policy as go with them."""
    rng = np.random.default_rng(seed)
    return world.stream(world.candidate, n, rng), world.stream(world.active, round(n * (1 - share) / share), rng)


def flat(n: int, tpot_s: float = 0.03, failed: float = 0.0, seed: int = 0) -> Stream:
    """Requests of one mean, log-normal about it."""
    rng = np.random.default_rng(seed)
    return Stream(tpot_s * rng.lognormal(-0.03, 0.25, n), rng.lognormal(-1.6, 0.4, n), rng.random(n) < failed)


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


def test_other_words_must_keep_the_gain() -> None:
    def times(rows: Any) -> Any:
        return BETTER.mean_s[rows]

    own, other = BETTER.pi(BETTER.candidate), 0.8 * BETTER.pi(BETTER.candidate)
    other[:, 0] += 0.2  # a fifth falls back to the default arm, and so does a fifth of the gain
    assert judged(BETTER, paired=times, reworded=lambda rows: own[rows]).passed
    verdict = judged(BETTER, paired=times, reworded=lambda rows: other[rows])
    assert refused(verdict) == {"rewording"}
    assert verdict.checks[-1].value == pytest.approx(0.8)
    with pytest.raises(ValueError, match="give `paired`"):
        judged(BETTER, reworded=lambda rows: own[rows])


@pytest.mark.parametrize("share", STAGES[:-1])
def test_what_is_better_advances(share: float) -> None:
    assert online(*streams(BETTER, share, 3000), share=share, scale_s=SCALE_S).action == "advance"


def test_few_requests_are_held() -> None:
    for n in (0, 1, 50, 199):
        step = online(*streams(BETTER, 0.1, n), share=0.1, scale_s=SCALE_S)
        assert step.action == "hold", step
    assert json.loads(json.dumps(step.as_json(), allow_nan=False))["action"] == "hold"


def test_a_margin_is_borne_before_the_last_stage_only() -> None:
    same = flat(3500), flat(3500, seed=1)
    assert online(flat(3500), flat(9 * 3500, seed=1), share=0.1, scale_s=0.04).action == "advance"
    step = online(*same, share=LAST, scale_s=0.04)
    assert (step.action, refused(step)) == ("hold", {"gain"})


def test_what_is_worse_is_rolled_back() -> None:
    step = online(flat(1500, 0.033), flat(1500, seed=1), share=LAST, scale_s=0.04)
    assert step.action == "roll_back"
    assert "not_worse" in refused(step)
    assert online(*streams(WORSE, LAST, 4000), share=LAST, scale_s=SCALE_S).action == "roll_back"


def test_what_stays_undecided_is_rolled_back() -> None:
    step = online(flat(4000), flat(4000, seed=1), share=LAST, scale_s=0.04)
    assert step.action == "roll_back"
    assert refused(step) == {"gain", "requests"}
    assert "undecided" in step.checks[-1].why


@pytest.mark.parametrize("share", [0.01, LAST])
def test_errors_roll_back(share: float) -> None:
    active = flat(round(800 * (1 - share) / share), failed=0.005, seed=1)
    assert "failures" in refused(online(flat(800, 0.025, 0.05), active, share=share, scale_s=0.04))
    assert "failures" not in refused(online(flat(800, 0.025, 0.005), active, share=share, scale_s=0.04))
    ten_down = Stream(np.full(10, np.nan), np.full(10, np.nan), np.ones(10, bool))
    assert online(ten_down, active, share=share, scale_s=0.04).action == "roll_back"


def test_failing_is_no_way_to_be_fast() -> None:
    """Who fails on the slow half of requests answers the others fast, and gains nothing by it."""
    honest = flat(2000)
    slow = honest.tpot_s > np.median(honest.tpot_s)
    picky = Stream(np.where(slow, np.nan, honest.tpot_s), honest.ttft_s, slow)
    assert picky.rewards(0.04).mean() < honest.rewards(0.04).mean()
    assert online(picky, flat(2000, seed=1), share=LAST, scale_s=0.04).action == "roll_back"


@pytest.mark.parametrize("name", ["p99_tpot", "p99_ttft"])
def test_tails_roll_back(name: str) -> None:
    """Six requests in a hundred that take thrice the time, in a candidate that is faster on the whole."""
    candidate, active = flat(1000, 0.026), flat(9000, seed=1)
    stalled = np.where(np.random.default_rng(2).random(1000) < 0.06, 3.0, 1.0)
    of = {"p99_tpot": "tpot_s", "p99_ttft": "ttft_s"}[name]
    longer = replace(candidate, **{of: getattr(candidate, of) * stalled})
    assert online(candidate, active, share=0.1, scale_s=0.04).action == "advance"
    step = online(longer, active, share=0.1, scale_s=0.04)
    assert (step.action, name in refused(step)) == ("roll_back", True)
    assert name not in refused(online(first(longer, 199), active, share=0.1, scale_s=0.04))


def test_looks_do_not_inflate() -> None:
    """An equal candidate and a hundred rollouts, with a look every 25 requests: few are ever called better or worse."""
    limits, called = Limits(alpha=0.3, min_requests=25, tail=1.0), dict.fromkeys(("gain", "not_worse", "failures"), 0)
    tails, runs = 0, 100
    for seed in range(runs):
        candidate, active = (flat(800, failed=0.03, seed=10_000 * one + seed) for one in (1, 2))
        names: set[str] = set()
        for n in range(25, 801, 25):
            step = online(first(candidate, n), first(active, n), share=LAST, scale_s=0.04, limits=limits)
            names |= {c.name for c in step.checks if c.passed is (c.name == "gain")}
        for name in called:
            called[name] += name in names
        tails += bool(names & {"p99_tpot", "p99_ttft"})
    assert all(count <= 18 for count in called.values()), called  # each at most 10 in a hundred; 19 come once in 200
    assert tails <= 18


def test_bounds_hold_at_all_sizes_and_only_shrink() -> None:
    left = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        active, candidate = rng.beta(2, 4, 5400), rng.beta(2, 4, 600) * 0.9
        seen = [gain_bounds(candidate[:n], active[: 9 * n], 9, 0.1) for n in (20, 50, 100, 200, 400, 600)]
        lows, highs = map(np.asarray, zip(*seen, strict=True))
        assert (lows[1:] >= lows[:-1]).all()
        assert (highs[1:] <= highs[:-1]).all()
        left += not lows[-1] <= 0.1 <= highs[-1]
    assert highs[-1] - lows[-1] < 0.2
    assert left <= 12  # 6 are expected at most
    assert gain_bounds(candidate[:0], active[:0], 9, 0.1) == (-np.inf, 1.0)


def test_rewards_lie_in_their_range() -> None:
    assert scaled(np.asarray([0.0, 0.02, 0.04, 0.08, 9.0]), 0.04) == pytest.approx([1.0, 0.75, 0.5, 0.0, 0.0])
    assert scale_of(np.asarray([np.nan, *np.linspace(0, 1, 101)])) == pytest.approx(0.9)


def test_what_cannot_be_judged_is_named() -> None:
    with pytest.raises(ValueError, match=r"0\.01, 0\.1, 0\.5"):
        online(flat(10), flat(10), share=1.0, scale_s=0.04)
    with pytest.raises(ValueError, match="one length"):
        Stream(np.ones(2), np.ones(3), np.zeros(2, bool))
    with pytest.raises(ValueError, match="earlier finished requests"):
        scale_of(np.full(3, np.nan))
