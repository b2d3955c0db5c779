"""Headroom on bandits whose truth is known: intervals cover it, and no gain is found where there is none."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.engines.profile.profile import Profile
from draftpick.policy_training.data.dataset import Dataset, DatasetError, Measurement
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.headroom.crossover import Bucket, bucket_of, buckets_by_load, crossover, lost_share
from draftpick.policy_training.headroom.estimate import (
    CrossFittedChoice,
    Gain,
    Headroom,
    additional_requests,
    context_groups,
    cross_fit,
    decide_verdict,
    evaluate_choice,
)
from draftpick.policy_training.headroom.simulated import under_load, unloaded_costs
from draftpick.policy_training.headroom.slices import find_slices
from draftpick.policy_training.headroom.verdict import Evidence, crossovers, describe, reasons_against
from draftpick.policy_training.learners import learner
from draftpick.policy_training.train import fitted, policy_probabilities
from draftpick.router.types import Outcome
from tests.policy_training.bandit import ARMS, COSTS, SETTING, TAU, Bandit

Floats = npt.NDArray[np.float64]
_TOKENS = 41.5
"""Tokens of the bandit's answers, on average."""


def drawn(n: int, seed: int, room: float, noise: float = 0.2) -> Matrix:
    """Requests of the bandit. `room` 1: its own acceptance lengths; 0: all arms take the same time, but for noise."""
    made = Bandit.draw(n, seed)
    rng = np.random.default_rng(1000 + seed)
    tau = means(room)[made.clusters] * rng.lognormal(-(noise**2) / 2, noise, (n, len(ARMS)))
    time_s = COSTS.time_s(tau, np.zeros(n), made.tokens, made.sampled)
    return replace(made.matrix(), acceptance_length=tau, time_s=time_s)


def means(room: float) -> Floats:
    """Acceptance lengths by cluster and arm."""
    alike = np.log(COSTS.step_s[:, 0] / COSTS.step_s[0, 0])
    return np.asarray(np.exp((1 - room) * alike + room * np.log(TAU)))


def expected(data: Matrix, room: float, noise: float = 0.2) -> Floats:
    """Mean seconds [n, arms] of such requests: by cluster, and greedy or sampled."""
    clusters = np.asarray([int(kind[-1]) for kind in data.kinds])
    steps_per_token = np.exp(noise**2) / means(room)[clusters]
    return np.asarray(0.02 + (_TOKENS - 1) * COSTS.step_s.T[(data.temperatures > 0).astype(int)] * steps_per_token)


def judged(
    data: Matrix, choice: CrossFittedChoice | None = None, learner: str = "ridge", **options: object
) -> Headroom:
    assert data.contexts is not None
    groups = context_groups(data.contexts)
    made = choice or cross_fit(data, learner, COSTS, groups)
    return evaluate_choice(data, made, groups, **{"slices": find_slices(data), **options})  # type: ignore[arg-type]


def gain_of(data: Matrix, choice: CrossFittedChoice | None = None) -> Headroom:
    """The same without slices, which take time."""
    return judged(data, choice, slices={})


def always(shares: Floats) -> CrossFittedChoice:
    """The choice of a policy that learned from nothing here, beside the arm `plain`."""
    return CrossFittedChoice(shares[None], np.zeros((1, len(shares)), np.intp), None)


def truth(data: Matrix, room: float, seed: int) -> float:
    """What a policy gains that learned from all of these requests: on fresh ones, by their expected times."""
    fresh = drawn(600, 10_000 + seed, room)
    times = expected(fresh, room)
    shares = policy_probabilities(fitted(data, learner("ridge"), SETTING), fresh)
    return float(1 - (shares * times).sum() / times.sum(0).min())


# --- intervals and verdicts ---


def test_intervals_of_a_given_choice_cover_its_true_gain() -> None:
    everybody = drawn(20_000, 7, room=0.5)
    times = expected(everybody, 0.5)
    gain = 1 - times[np.arange(len(times)), chosen(everybody)].sum() / times[:, 0].sum()
    covered = 0
    for seed in range(80):
        data = drawn(150, seed, room=0.5)
        found = gain_of(data, always(np.eye(len(ARMS))[chosen(data)])).gain.routed
        covered += found.low <= gain <= found.high
    assert covered >= 72


def chosen(data: Matrix) -> npt.NDArray[np.intp]:
    """A choice that knows clusters, and knows them wrongly."""
    return np.asarray([(int(kind[-1]) + 2) % len(ARMS) for kind in data.kinds])


def test_intervals_of_what_is_learned_cover_its_true_gain() -> None:
    verdicts, covered, room = Counter[str](), 0, 0.3
    for seed in range(16):
        data = drawn(120, seed, room)
        assert data.contexts is not None
        choice = cross_fit(data, "ridge", COSTS, context_groups(data.contexts), seed=seed)
        found = gain_of(data, choice)
        verdicts[found.verdict] += 1
        covered += found.gain.routed.low <= truth(data, room, seed) <= found.gain.routed.high
    assert covered >= 14
    assert verdicts["worth it"] >= 9
    assert verdicts["not worth it"] == 0


def test_where_nothing_is_to_be_gained_it_is_not_worth_it() -> None:
    quiet = Counter(gain_of(drawn(100, seed, room=0.0, noise=0.05)).verdict for seed in range(6))
    noisy = Counter(gain_of(drawn(100, seed, room=0.0, noise=0.3)).verdict for seed in range(16))
    assert quiet["not worth it"] >= 5
    assert noisy["worth it"] <= 1
    assert noisy["not worth it"] >= 1


def test_one_engine_that_is_the_best_for_everything() -> None:
    data = drawn(200, 1, room=0.0, noise=0.1)
    tau = data.acceptance_length * [1.0, 2.0, 1.0, 1.0]
    time_s = COSTS.time_s(tau, np.zeros(200), data.output_tokens, data.temperatures > 0)
    data = replace(data, acceptance_length=tau, time_s=time_s)
    found = judged(data)
    assert (found.verdict, found.best) == ("not worth it", "ngram")
    assert found.arms["ngram"].share > 0.99
    assert found.arms["ngram"].time.value == pytest.approx(1.0)
    assert "ngram would get 100% of the requests" in " ".join(reasons_against(Evidence(found, 0.03)))


def test_the_default_learner_finds_room_where_there_is_some() -> None:
    found = judged(drawn(240, 3, room=1.0), learner="tau_cost")
    assert found.verdict == "worth it"
    assert found.share_of_oracle is not None
    assert 0.6 < found.share_of_oracle < 1.0
    assert found.gain.oracle is not None
    assert found.gain.oracle.value > found.gain.routed.value
    assert sum(arm.share for arm in found.arms.values()) == pytest.approx(1.0)
    assert sum(arm.wins or 0.0 for arm in found.arms.values()) == pytest.approx(1.0)
    assert set(found.slices) == {f"cluster-{i}" for i in range(4)}
    assert set(found.halves) == {"greedy", "sampled"}
    assert found.worst is not None
    assert found.worst[1].routed.value == min(gain.routed.value for gain in found.slices.values())


def test_requests_of_one_text_count_as_one() -> None:
    data = drawn(80, 0, room=0.6)
    twice = replace(data, **{
        name: np.concatenate([getattr(data, name)] * 4)
        for name in ("time_s", "acceptance_length", "acceptance_rate", "prompt_tokens", "output_tokens", "temperatures",
                     "contexts")
    }, prompt_ids=data.prompt_ids * 4, kinds=data.kinds * 4)  # fmt: skip
    shares = np.eye(len(ARMS))[chosen(data)]
    once, repeated = judged(data, always(shares)).gain, judged(twice, always(np.concatenate([shares] * 4))).gain
    assert repeated.n == 4 * once.n
    assert repeated.routed.value == pytest.approx(once.routed.value)
    assert repeated.routed.high - repeated.routed.low == pytest.approx(once.routed.high - once.routed.low, rel=0.15)


def test_intervals_are_by_source_and_slices_come_worst_first() -> None:
    """A source whose requests are all of one kind tells as little as one request of it."""
    data = drawn(200, 0, 0.6)
    order = np.argsort(np.asarray(data.kinds), kind="stable")
    sources = np.empty(200, object)
    sources[order] = [f"s{i // 20}" for i in range(200)]
    choice = CrossFittedChoice(np.eye(len(data.arms))[data.time_s.argmin(1)][None], np.zeros((1, 200), np.intp), None)
    by_request, by_source = judged(data, choice), judged(replace(data, sources=tuple(sources)), choice)
    widths = [found.gain.routed.high - found.gain.routed.low for found in (by_request, by_source)]
    assert widths[1] > 1.3 * widths[0]
    gains = [gain.routed.value for gain in by_source.slices.values()]
    assert len(gains) > 1
    assert gains == sorted(gains)


def test_a_policy_never_learns_from_the_requests_that_it_is_judged_by() -> None:
    data, seen = drawn(60, 0, room=0.6), list[Matrix]()

    def grown(held: npt.NDArray[np.intp]) -> Matrix:
        rest = data.select_rows(np.setdiff1d(np.arange(len(data)), held))
        seen.append(rest)
        assert not {data.prompt_ids[i] for i in held} & set(rest.prompt_ids)
        return rest

    assert data.contexts is not None
    groups = context_groups(data.contexts)
    with_rest = cross_fit(data, "ridge", COSTS, groups, training_rows=grown)
    np.testing.assert_array_equal(with_rest.shares, cross_fit(data, "ridge", COSTS, groups).shares)
    assert len(seen) == 15


def test_costs_that_are_not_sure_widen_the_interval() -> None:
    data = drawn(300, 0, room=0.6)
    choice = always(np.eye(len(ARMS))[chosen(data)])
    rng = np.random.default_rng(0)
    other = [
        Costs(ARMS, COSTS.step_s * rng.lognormal(0, 0.1, (4, 1)), COSTS.start_s, COSTS.per_token_s) for _ in range(40)
    ]
    sure, unsure = judged(data, choice).gain.routed, judged(data, choice, drawn=other).gain.routed
    assert unsure.value == sure.value
    assert unsure.high - unsure.low > 1.5 * (sure.high - sure.low)


def test_too_few_requests_are_no_evidence() -> None:
    with pytest.raises(DatasetError, match="39 requests have measurements of all engines: at least 40"):
        judged(drawn(39, 0, 1.0), always(np.ones((39, 4)) / 4))


Shares = st.floats(-0.5, 0.9, allow_nan=False)


@given(st.tuples(Shares, Shares, Shares).map(sorted), Shares, st.floats(0, 0.2))
def test_verdicts(ends: Sequence[float], oracle: float, worth: float) -> None:
    low, value, high = ends
    routed = Interval(value, low, high)
    verdict = decide_verdict(Gain(100, routed, Interval(oracle, oracle, oracle)), worth)
    assert (verdict == "worth it") == (low > worth)
    assert verdict != "not worth it" or min(high, oracle) < worth
    assert verdict != "cannot tell" or low <= worth <= high
    needed = additional_requests(routed, 100, worth)
    assert needed >= 1
    assert additional_requests(routed, 1000, worth) >= needed


# --- load ---


def answers(arm: str, in_flight: int, step_s: float, tau: float | None, count: int = 40) -> list[Measurement]:
    rng = np.random.default_rng(in_flight)
    return [
        Measurement(
            f"{arm}-{in_flight}-{i}", "kind", arm, arm, 0.0, 64,
            Outcome("ok", 200, 0.1, step_s * rng.lognormal(0, 0.05) / (tau or 1.0), acceptance_length=tau),
            in_flight=in_flight,
        )
        for i in range(count)
    ]  # fmt: skip


def test_where_drafting_stops_to_pay() -> None:
    rows = [
        m
        for load, more in ((1, 0.0), (6, 0.2), (20, 1.4))
        for m in (*answers("plain", load, 0.01, None), *answers("ngram", load, 0.01 * (1.1 + more), 1.5))
    ]
    rows += answers("suffix", 1, 0.01, 2.0, count=5)  # too few to say anything of
    buckets = buckets_by_load(
        Dataset(tuple(rows)), ("plain", "ngram", "suffix"), {"plain": 1.0, "ngram": 1 / 1.5, "suffix": 0.5}
    )
    assert [one.label for one in buckets] == ["1", "4-7", "16-31"]
    assert [sorted(one.tpot_s) for one in buckets] == [["ngram", "plain"]] * 3
    assert buckets[0].tpot_s["ngram"].value == pytest.approx(0.011 / 1.5, rel=0.03)
    found = crossover(buckets, "ngram", "plain")
    assert found is not None
    assert found.least == 16
    assert crossover(buckets, "suffix", "plain") is None
    assert lost_share(buckets, "plain") == pytest.approx(80 / 245)
    said = crossovers(Evidence(judged(drawn(60, 0, 1.0)), 0.03, buckets, "plain"))
    assert said == ["ngram is slower than plain from 16 requests in flight on it"]


@given(st.integers(1, 10_000))
def test_buckets_of_load(in_flight: int) -> None:
    number = bucket_of(in_flight)
    assert 2**number <= in_flight < 2 ** (number + 1)


def profile(step_s: Sequence[float]) -> Profile:
    """Seconds of a step with 1 and with 16 requests running."""
    rows = tuple((seconds,) for seconds in step_s)
    return Profile("b", "m", (1, 16), (0,), (rows, rows), 0.01, 0.0, 16)


def test_equal_numbers_of_engines_under_load() -> None:
    data = drawn(200, 0, room=1.0)
    assert data.contexts is not None
    choice = cross_fit(data, "tau_cost", COSTS, context_groups(data.contexts))
    assert choice.predicted_tau is not None
    flat = {arm: profile((float(step),) * 2) for arm, step in zip(ARMS, COSTS.step_s[:, 0], strict=True)}
    np.testing.assert_allclose(unloaded_costs(flat).step_s[:, 0], COSTS.step_s[:, 0])
    calm = under_load(data, choice.predicted_tau, flat, rate=1.0)
    assert calm.verdict(0.03) == "worth it"
    assert calm.gain.value == pytest.approx(judged(data, choice).gain.routed.value, abs=0.1)
    # Drafting engines whose step grows with the batch, and a plain one whose step does not.
    steep = {
        arm: profile((float(s), float(s) * (1 if arm == "plain" else 12)))
        for arm, s in zip(ARMS, COSTS.step_s[:, 0], strict=True)
    }
    busy = under_load(data, choice.predicted_tau, steep, rate=60.0)
    assert (busy.single, busy.verdict(0.03)) == ("plain", "not worth it")
    found = judged(data, choice)
    evidence = Evidence(found, 0.03, loaded=busy)
    assert (found.verdict, evidence.verdict) == ("worth it", "not worth it")
    assert "4 engines plain take" in " ".join(reasons_against(evidence))


# --- words ---


def test_what_speaks_against_it() -> None:
    found = judged(drawn(200, 5, room=0.0, noise=0.05))
    poor = replace(
        found,
        output_tokens=6.0,
        halves={"sampled": found.gain},
        slices={"odd": Gain(30, Interval(-0.2, -0.3, -0.1), None)},
    )
    buckets = [Bucket(1, 1, 0.9, {"plain": Interval(1, 1, 1), "ngram": Interval(2, 2, 2)})]
    said = " | ".join(reasons_against(Evidence(poor, 0.03, buckets, "plain", None, overhead=0.02, sampled=0.95)))
    for part in (
        "routing is slower than", "odd (-20.0%)", "95% of the requests are sampled", "6 tokens or fewer",
        "takes 2.0% of a request's time", "90% of the answers were at loads where plain",
    ):  # fmt: skip
        assert part in said
    assert describe(Evidence(found, 0.03)).startswith("on 200 requests routing takes")


def test_clusters_are_named_after_what_stands_out_in_them() -> None:
    data = replace(drawn(200, 0, 1.0), kinds=("traffic",) * 200)
    masks = find_slices(data)
    assert len(masks) == 5
    assert np.sum(list(masks.values())) == 200
    assert any("temperature" in name for name in masks)
    assert find_slices(data.select_rows(np.arange(50))) == {}
