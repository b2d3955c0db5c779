from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.engines.profile.profile import Profile
from draftpick.router.load.step_time import MAX_BATCH, StepTimeModel

PROFILE = Profile("b", "m", (1, 4, 16), (64,), (((0.01,), (0.01,), (0.04,)), ((0.02,), (0.03,), (0.09,))), 0.0, 0.0, 32)


def test_without_a_profile_a_step_is_guessed_to_grow() -> None:
    table = StepTimeModel()
    assert [table.curves[0][n] for n in (1, 2, 16)] == pytest.approx([1.0, 1.03, 1.45])
    assert table.max_running == MAX_BATCH


def test_answers_of_one_batch_size_leave_the_guess() -> None:
    table = StepTimeModel()
    for _ in range(100):
        table.update(16, 0, 0.05)
    table.refit()
    assert table.curves[0][16] == pytest.approx(1.45)


def test_a_profile_is_followed_and_begins_with_1() -> None:
    table = StepTimeModel(PROFILE)
    assert [table.curves[0][n] for n in (0, 1, 4, 16)] == pytest.approx([1, 1, 1, 4])
    assert [table.curves[1][n] for n in (1, 4, 16)] == pytest.approx([1, 1.5, 4.5])
    assert table.max_running == 32


def test_answers_bend_the_curve_towards_what_they_took() -> None:
    table, rng = StepTimeModel(), np.random.default_rng(0)
    for _ in range(400):
        running = int(rng.integers(1, 33))
        table.update(running, 0, 0.01 * (1 + 0.1 * (running - 1)) * rng.lognormal(0, 0.05))
    table.refit()
    assert table.curves[0][16] == pytest.approx(2.5, rel=0.15)
    assert table.curves[0][32] == pytest.approx(4.1, rel=0.2)


def test_what_is_seen_counts_only_after_a_renewal() -> None:
    table = StepTimeModel()
    before = table.curves
    for running in (1, 8) * 50:
        table.update(running, 0, 0.01 * running)
    assert table.curves == before


def test_that_sampling_is_dearer_is_no_load() -> None:
    """Greedy requests alone at low load, sampled ones at high load."""
    table = StepTimeModel()
    for _ in range(100):
        table.update(1, 0, 0.01)
        table.update(8, 0, 0.01)
        table.update(8, 1, 0.03)
        table.update(32, 1, 0.03)
    table.refit()
    assert table.curves[0][32] == pytest.approx(1.0, abs=0.15)


def test_one_answer_hardly_moves_anything() -> None:
    table = StepTimeModel(PROFILE)
    for _ in range(50):
        table.update(4, 0, 0.01)
    table.update(4, 0, 10.0)
    table.refit()
    assert table.curves[0][4] == pytest.approx(1.0, abs=0.05)


@given(st.lists(st.tuples(st.floats(0, 2000), st.integers(0, 1), st.floats(-1, 100, allow_nan=False)), max_size=50))
def test_curves_never_fall_whatever_is_seen(seen: list[tuple[float, int, float]]) -> None:
    table = StepTimeModel(PROFILE)
    for running, half, step_s in seen:
        table.update(running, half, step_s)
    table.refit()
    for curve in table.curves:
        assert curve[0] == curve[1] == 1.0
        assert len(curve) == MAX_BATCH + 1
        assert all(np.isfinite(curve))
        assert all(a <= b for a, b in pairwise(curve))


@pytest.mark.parametrize(("ratio", "answers", "contradicts"), [(1.5, 70, True), (1.5, 30, False), (1.15, 200, False)])
def test_a_lasting_ratio_contradicts_a_profile(ratio: float, answers: int, contradicts: bool) -> None:
    for model, expected in ((StepTimeModel(PROFILE), contradicts), (StepTimeModel(), False)):
        for n in range(answers):
            model.update(1 + n % 4, 2, ratio * PROFILE.step(1 + n % 4, 0, 2))
        assert model.contradicted == expected
        model.forget_answers()
        assert not model.contradicted


def test_another_profile_forgets_what_was_seen() -> None:
    table = StepTimeModel()
    for running in (1, 8) * 50:
        table.update(running, 0, 0.01 * running)
    table.refit()
    table.use_profile(PROFILE)
    assert table.curves[0][8] == pytest.approx(2.0)


def test_an_answer_of_little_weight_moves_a_step_time_little() -> None:
    full, little = StepTimeModel(), StepTimeModel()
    for model, weight in ((full, 1.0), (little, 0.1)):
        for _ in range(30):
            model.update(1, 0, 0.01)
            model.update(8, 0, 0.01)
        for _ in range(30):
            model.update(8, 0, 0.04, weight)
        model.refit()
    assert 1.0 < little.curves[0][8] < 0.7 * full.curves[0][8]
