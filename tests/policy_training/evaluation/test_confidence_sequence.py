"""Bounds and p-values by betting: they hold at every look, tell what there is to tell, and never grow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftpick.policy_training.evaluation.confidence_sequence import confidence_bounds, p_value

RUNS = 200


def test_bounds_hold_at_all_sizes_and_only_shrink() -> None:
    """Of numbers whose range changes on the way, as weights do when a share does."""
    left, ranges = 0, np.concatenate([np.full(200, 4.0), np.full(400, 1.0)])
    for seed in range(RUNS):
        x = ranges * np.random.default_rng(seed).uniform(-1, 1, 600) + 0.1 * (ranges == 1.0) + 0.1 * (ranges == 4.0)
        least = most = ranges + 0.1
        seen = [confidence_bounds(x[:n], least[:n], most[:n], 0.1) for n in (20, 50, 100, 200, 400, 600)]
        lows, highs = map(np.asarray, zip(*seen, strict=True))
        assert (lows[1:] >= lows[:-1]).all()
        assert (highs[1:] <= highs[:-1]).all()
        left += not lows[-1] <= 0.1 <= highs[-1]
    assert highs[-1] - lows[-1] < 0.3
    assert left <= 30  # 20 are expected at most


def test_of_nothing_nothing_is_known() -> None:
    nothing = np.zeros(0)
    assert confidence_bounds(nothing, nothing, nothing, 0.1) == (-np.inf, np.inf)
    assert p_value(nothing, 1.0) == 1.0


def test_looks_do_not_make_chance_a_finding() -> None:
    """The highest stake that was ever reached counts, so that one look at the end is a look at every moment."""
    found = sum(p_value(np.random.default_rng(seed).choice([-1.0, 1.0], 2000), 1.0) <= 0.1 for seed in range(RUNS))
    assert found <= 30
    assert p_value(np.random.default_rng(0).choice([-1.0, 1.0], 2000, p=[0.4, 0.6]), 1.0) < 1e-6


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.floats(1.0, 50.0))
def test_numbers_within_their_range_give_bounds_in_order(values: list[float], wider: float) -> None:
    x = np.asarray(values)
    low, high = confidence_bounds(x, np.full(len(x), wider), np.full(len(x), wider), 0.05)
    assert low <= high
    assert 0.0 < p_value(x, wider) <= 1.0


@pytest.mark.parametrize("mean", [-0.4, 0.0, 0.4])
def test_bounds_close_in_on_the_mean(mean: float) -> None:
    x = np.random.default_rng(1).uniform(mean - 0.5, mean + 0.5, 5000)
    low, high = confidence_bounds(x, np.full(5000, 1.0), np.full(5000, 1.0), 0.05)
    assert low < mean < high
    assert high - low < 0.06
