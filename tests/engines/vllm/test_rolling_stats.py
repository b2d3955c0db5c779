"""Means of the last seconds, on a clock that the test moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.engines.vllm.rolling_stats import RecentSteps


class Clock:
    """Seconds that pass when the test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nothing_was_done() -> None:
    recent = RecentSteps()
    assert (recent.tokens_per_s(), recent.tokens_per_request_step(), recent.step_s()) == (0.0, None, None)


def test_means_of_tokens_steps_and_turns() -> None:
    clock = Clock()
    recent = RecentSteps(clock=clock)
    recent.add(3, 0, 0, None)  # three first tokens
    for _ in range(20):
        clock.now += 0.1
        recent.add(6, 6, 3, 0.1)
    assert recent.tokens_per_s() == pytest.approx(123 / 2)
    assert recent.tokens_per_request_step() == pytest.approx(2.0)
    assert recent.step_s() == pytest.approx(0.1)


def test_what_is_long_ago_is_forgotten_though_nothing_comes_after_it() -> None:
    clock = Clock()
    recent = RecentSteps(window_s=5, clock=clock)
    recent.add(10, 10, 10, 0.5)
    clock.now += 4.9
    assert recent.step_s() == 0.5
    clock.now += 0.1
    assert (recent.tokens_per_s(), recent.tokens_per_request_step(), recent.step_s()) == (0.0, None, None)


@given(st.lists(st.tuples(st.floats(0.001, 3), st.integers(1, 9)), min_size=1, max_size=60))
def test_means_lie_between_what_was_added_and_memory_is_bounded(steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    recent = RecentSteps(clock=clock)
    for step_s, tokens in steps:
        clock.now += step_s
        recent.add(tokens, tokens, 1, step_s)
    mean_s, tau = recent.step_s(), recent.tokens_per_request_step()
    assert mean_s is not None
    assert tau is not None
    assert min(s for s, _ in steps) * (1 - 1e-9) <= mean_s <= max(s for s, _ in steps) * (1 + 1e-9)
    assert min(t for _, t in steps) <= tau <= max(t for _, t in steps)
    assert len(recent._buckets) <= 6
