"""Resamples: right in the mean, exact in their sums, and the same again from the same seed."""

from collections.abc import Callable

import numpy as np
import pytest

from draftpick.policy_training.evaluation.bootstrap import Bootstrap, bounds, source_blocks

DRAWS = [Bootstrap.of_counts, Bootstrap.of_places]
Draw = Callable[[int, int, np.random.Generator], Bootstrap]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("draw", DRAWS)
def test_each_resample_holds_as_many_units_as_there_are(draw: Draw) -> None:
    counts = draw(7, 4000, rng()).counts
    assert counts.shape == (4000, 7)
    assert (counts.sum(1) == 7).all()
    assert counts.mean(0) == pytest.approx(np.ones(7), abs=0.06)
    assert counts.var(0) == pytest.approx(np.full(7, 6 / 7), rel=0.1)
    np.testing.assert_array_equal(counts, draw(7, 4000, rng()).counts)
    assert (counts != draw(7, 4000, rng(1)).counts).any()


def test_sums_are_those_of_the_places_that_were_drawn() -> None:
    values = rng(1).uniform(1, 2, (9, 3))
    places = rng().integers(0, 9, (50, 9))
    draws = Bootstrap.of_places(9, 50, rng())
    assert draws.sums(values) == pytest.approx(values[places].sum(1))
    a, b = values[:, 0], values[:, 1]
    assert draws.ratios(a, b) == pytest.approx(a[places].sum(1) / b[places].sum(1))


@pytest.mark.parametrize("draw", DRAWS)
def test_the_interval_of_a_mean_covers_it_as_often_as_it_says(draw: Draw) -> None:
    missed = 0
    for seed in range(200):
        sample = rng(seed).exponential(1.0, 80)
        low, high = bounds(draw(80, 500, rng(seed)).sums(sample) / 80)
        missed += not low <= 1.0 <= high
    assert 3 <= missed <= 24  # 5 % are 10, and a skewed mean of 80 is missed a little more often


def test_blocks_are_drawn_whole() -> None:
    counts = Bootstrap.of_blocks(["a", "b", "a", "c"], 500, rng()).counts
    assert (counts[:, 0] == counts[:, 2]).all()
    assert (counts[:, [0, 1, 3]].sum(1) == 3).all()


def test_requests_of_one_source_are_a_block_and_too_few_are_none() -> None:
    sources = ["a", "b", "c", "", "", "generated", "a"]
    blocks = source_blocks(sources, 7)
    assert blocks is not None
    assert (len(set(blocks)), blocks[0], blocks[6]) == (6, "a", "a")
    assert source_blocks(["a", "b"] * 50, 100) is None
    assert len(set(source_blocks([], 7) or ())) == 7


def test_bounds_of_columns_and_of_another_level() -> None:
    drawn = np.stack([np.arange(1001.0), np.arange(1001.0) * 2], axis=1)
    assert bounds(drawn).tolist() == [[25.0, 50.0], [975.0, 1950.0]]
    assert bounds(drawn[:, 0], 0.2).tolist() == [100.0, 900.0]
    assert bounds(np.asarray([-np.inf, 1.0, 2.0]), method="lower").tolist() == [-np.inf, 1.0]
