from itertools import pairwise

import numpy as np
import pytest

from draftpick.engines.pool.costs import Costs, CostTable, nondecreasing


def test_what_is_measured_replaces_what_was_assumed() -> None:
    table, random = CostTable([1.0] * 40), np.random.default_rng(0)
    for _ in range(2000):
        count = int(random.integers(1, 10))
        table.add(count, (0.02 + 0.001 * count) * random.uniform(0.9, 1.1))
    assert [table.seconds(n) for n in (1, 5, 9)] == pytest.approx([0.021, 0.025, 0.029], rel=0.05)


def test_counts_that_were_never_seen_follow_the_shape_of_the_prior() -> None:
    table = CostTable((1 + 0.1 * np.arange(60)).tolist())
    for _ in range(100):
        table.add(10, 0.2)
    assert table.seconds(40) == pytest.approx(0.5, rel=0.05)


def test_costs_never_fall_with_the_count() -> None:
    table, random = CostTable([1.0] * 200), np.random.default_rng(1)
    for _ in range(300):
        table.add(int(random.integers(1, 190)), random.uniform(0.01, 0.1))
    seconds = [table.seconds(n) for n in range(1, 200)]
    assert all(a <= b + 1e-12 for a, b in pairwise(seconds))


def test_a_pause_is_no_cost() -> None:
    table = CostTable([0.02] * 10)
    for _ in range(60):
        table.add(1, 0.02)
    table.add(1, 30.0)
    assert table.seconds(1) < 0.03


def test_a_machine_that_becomes_slower_is_noticed() -> None:
    table = CostTable([0.02] * 10)
    for seconds in [0.02] * 500 + [0.05] * 150:
        table.add(2, seconds)
    assert table.seconds(2) == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("batch", [(1, True), (8, False)], ids=["sampled", "many requests"])
def test_sampled_batches_and_many_requests_have_costs_of_their_own(batch: tuple[int, bool]) -> None:
    costs = Costs(max_tokens=64, max_requests=8)
    for _ in range(50):
        costs.verify(*batch).add(8, 0.04)
        costs.verify(1, False).add(8, 0.01)
    assert costs.verify(*batch).seconds(8) > 3 * costs.verify(1, False).seconds(8)


def test_violators_are_pooled_by_their_weights() -> None:
    values, weights = np.array([1.0, 4.0, 2.0, 5.0]), np.array([1.0, 1.0, 3.0, 1.0])
    assert nondecreasing(values, weights).tolist() == [1.0, 2.5, 2.5, 5.0]
