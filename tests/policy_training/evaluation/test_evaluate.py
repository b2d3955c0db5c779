"""Evaluation: totals that can be added up by hand, and intervals that hold the truth."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from draftpick.policy_training.evaluation.evaluate import Evaluation, Interval, evaluate, shares_by_task
from tests.policy_training.bandit import ARMS, BEST, Bandit

TIMES = np.asarray([[4.0, 2, 8, 9], [4, 8, 2, 9], [4, 2, 8, 9], [4, 8, 1, 9]])
CHOSEN = np.eye(4)[[1, 2, 1, 0]]
DATA = replace(Bandit.draw(4, seed=0).matrix(), time_s=TIMES, kinds=("x", "y", "x", "y"))


def judged(n: int = 200, seed: int = 0, resamples: int = 500) -> Evaluation:
    """A policy that takes the best arm of each cluster, judged on `n` prompts."""
    bandit = Bandit.draw(n, seed)
    chosen = np.eye(len(ARMS))[BEST[bandit.clusters]]
    data = bandit.matrix()
    return evaluate(data, (chosen * data.time_s).sum(1), chosen, "plain", resamples=resamples, seed=seed)


def intervals(result: Evaluation) -> list[Interval]:
    return [result.policy_vs_plain, result.policy_vs_best_fixed, result.oracle_vs_best_fixed]


def test_known_totals() -> None:
    result = evaluate(DATA, (CHOSEN * TIMES).sum(1), CHOSEN, "ngram")
    assert result.n == 4
    assert result.time_s == {"plain": 16, "ngram": 20, "suffix": 19, "math": 36}
    assert result.policy_time_s == 2 + 2 + 2 + 4
    assert result.oracle_time_s == 2 + 2 + 2 + 1
    assert result.best_fixed == "plain"
    assert [one.value for one in intervals(result)] == [20 / 10, 16 / 10, 16 / 7]


def test_shares_by_kind() -> None:
    shares = evaluate(DATA, (CHOSEN * TIMES).sum(1), CHOSEN, "plain").shares
    assert list(shares) == ["all", "x", "y"]
    assert shares["all"] == {"plain": 0.25, "ngram": 0.5, "suffix": 0.25, "math": 0.0}
    assert shares["x"] == {"plain": 0.0, "ngram": 1.0, "suffix": 0.0, "math": 0.0}
    assert shares["y"] == {"plain": 0.5, "ngram": 0.0, "suffix": 0.5, "math": 0.0}


def test_slices_by_kind_come_worst_first_against_the_best_arm_of_all() -> None:
    result = evaluate(DATA, (CHOSEN * TIMES).sum(1), CHOSEN, "ngram")
    assert list(result.slices) == ["y", "x"]
    assert result.slices["x"].policy_vs_best_fixed.value == 8 / 4
    assert result.slices["x"].policy_vs_plain.value == 4 / 4
    assert result.slices["y"].policy_vs_best_fixed.value == 8 / 6
    assert (result.slices["y"].n, result.slices["y"].blocks) == (2, "request")


def test_intervals_are_by_source_where_sources_are_known() -> None:
    bandit = Bandit.draw(400, 0)
    chosen = np.eye(len(ARMS))[np.full(400, 1)]
    order = np.argsort(bandit.clusters, kind="stable")
    sources = np.empty(400, object)
    sources[order] = [f"s{i // 20}" for i in range(400)]
    by_request = bandit.matrix()
    by_source = replace(by_request, sources=tuple(sources))
    one, other = (evaluate(data, data.time_s[:, 1], chosen, "plain") for data in (by_request, by_source))
    assert (one.blocks, other.blocks) == ("request", "source")
    assert one.policy_vs_plain.value == other.policy_vs_plain.value
    widths = [found.policy_vs_plain.high - found.policy_vs_plain.low for found in (one, other)]
    assert widths[1] > 1.5 * widths[0]
    assert {found.sources for found in other.slices.values()} <= set(range(1, 21))


def test_a_bar_is_met_by_the_lower_bound() -> None:
    assert Interval(1.2, 1.0, 1.4).meets(1.0)
    assert not Interval(1.2, 0.99, 1.4).meets(1.0)


def test_shares_of_a_policy_that_samples_are_means() -> None:
    shares = shares_by_task(["x", "x"], ["a", "b"], np.asarray([[0.25, 0.75], [0.75, 0.25]]))
    assert shares == {"all": {"a": 0.5, "b": 0.5}, "x": {"a": 0.5, "b": 0.5}}


def test_the_best_fixed_arm_against_itself_is_one() -> None:
    data = Bandit.draw(200, seed=0).matrix()
    best = int(data.time_s.sum(0).argmin())
    chosen = np.tile(np.eye(4)[best], (200, 1))
    result = evaluate(data, data.time_s[:, best], chosen, ARMS[best])
    assert result.best_fixed == ARMS[best]
    assert asdict(result.policy_vs_plain) == pytest.approx({"value": 1.0, "low": 1.0, "high": 1.0})
    assert result.policy_vs_best_fixed.value == pytest.approx(1.0)
    assert result.policy_vs_best_fixed.high <= 1.0 + 1e-9


def test_the_oracle_is_its_own_bound() -> None:
    data = Bandit.draw(200, seed=0).matrix()
    chosen = np.eye(len(ARMS))[data.time_s.argmin(1)]
    result = evaluate(data, data.time_s.min(1), chosen, "plain")
    assert result.policy_time_s == pytest.approx(result.oracle_time_s)
    assert result.policy_vs_best_fixed.value == pytest.approx(result.oracle_vs_best_fixed.value)
    assert result.oracle_time_s < min(result.time_s.values())


@pytest.mark.parametrize("seed", range(3))
def test_intervals_contain_the_value(seed: int) -> None:
    for one in intervals(judged(seed=seed)):
        assert one.low < one.value < one.high


def test_intervals_repeat_under_a_seed() -> None:
    assert judged(seed=5) == judged(seed=5)


def test_more_prompts_make_narrower_intervals() -> None:
    few, many = (judged(n).policy_vs_plain for n in (50, 800))
    assert many.high - many.low < (few.high - few.low) / 2


def test_prompts_that_are_all_alike_leave_no_spread() -> None:
    times = np.tile([2.0, 1.0, 4.0, 4.0], (4, 1))
    result = evaluate(replace(DATA, time_s=times), times[:, 1], np.tile(np.eye(4)[1], (4, 1)), "plain")
    assert intervals(result) == [Interval(2.0, 2.0, 2.0), Interval(1.0, 1.0, 1.0), Interval(1.0, 1.0, 1.0)]


def test_intervals_cover_the_true_speed_up() -> None:
    many = Bandit.draw(20_000, seed=7)
    truth = float(many.time_s[:, 0].sum() / many.time_s.min(1).sum())
    drawn = [judged(80, seed, resamples=200).policy_vs_plain for seed in range(60)]
    assert np.mean([one.low <= truth <= one.high for one in drawn]) >= 0.85
