"""Corrections: bounded steps whatever is measured, news of other routers, and files that are none of theirs."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.router.config.sections import CorrectionConfig
from draftpick.router.online.residual_correction import ResidualCorrection

BINS, ARMS = 3, 2
CONFIG = CorrectionConfig(enabled=True)
residuals = st.floats(-1e6, 1e6)
answers = st.lists(st.tuples(st.integers(0, BINS - 1), st.integers(0, ARMS - 1), residuals), max_size=60)


def made(*seen: tuple[int, int, float], config: CorrectionConfig = CONFIG) -> ResidualCorrection:
    correction = ResidualCorrection(config, BINS, ARMS)
    for one in seen:
        correction.update(*one)
    return correction


@given(answers, st.tuples(st.integers(0, BINS - 1), st.integers(0, ARMS - 1), residuals))
def test_one_answer_moves_no_cell_by_more_than_a_step(
    before: list[tuple[int, int, float]], last: tuple[int, int, float]
) -> None:
    correction = made(*before)
    old = correction.residuals()
    correction.update(*last)
    assert np.abs(correction.residuals() - old).max() <= CONFIG.max_log_step


@given(answers)
def test_all_shifts_are_finite_and_are_those_of_the_cells(seen: list[tuple[int, int, float]]) -> None:
    correction = made(*seen)
    cells = [[correction.residual(bin, arm) for arm in range(ARMS)] for bin in range(BINS)]
    assert np.isfinite(correction.residuals()).all()
    assert correction.residuals() == pytest.approx(np.asarray(cells))


@given(st.lists(st.floats(-0.6, 0.6), min_size=1, max_size=60))
def test_a_shift_stays_within_what_was_seen(seen: list[float]) -> None:
    correction = made(*((0, 0, one) for one in seen))
    assert min(0.0, *seen) - 1e-12 <= correction.residual(0, 0) <= max(0.0, *seen) + 1e-12


def test_a_full_memory_moves_by_a_step_over_its_length() -> None:
    rng = np.random.default_rng(0)
    correction = made(*((0, 0, float(rng.normal(0.2, 0.1))) for _ in range(400)))
    before = correction.residual(0, 0)
    correction.update(0, 0, 100.0)
    assert correction.residual(0, 0) - before == pytest.approx(CONFIG.max_log_step / CONFIG.window, rel=0.2)


def test_it_follows_a_truth_that_changes_within_its_memory() -> None:
    rng = np.random.default_rng(1)
    correction = made(*((0, 0, float(rng.normal(0.0, 0.2))) for _ in range(400)))
    for _ in range(3 * int(CONFIG.window)):
        correction.update(0, 0, float(rng.normal(0.6, 0.2)))
    assert correction.residual(0, 0) == pytest.approx(0.6, abs=0.12)


@pytest.mark.parametrize(("seen", "least", "most"), [(1, 0.15, 0.5), (5, 0.5, 0.8), (200, 0.85, 0.9)])
def test_a_cell_of_few_answers_leans_on_its_arm(seen: int, least: float, most: float) -> None:
    # The arm is as it was predicted elsewhere; here it takes exp(0.9) times as long.
    correction = made(*((1, 0, 0.0) for _ in range(200)), config=CorrectionConfig(max_log_step=5.0))
    for _ in range(seen):
        correction.update(0, 0, 0.9)
    assert least <= correction.residual(0, 0) <= most
    assert abs(correction.residual(1, 0)) < 0.05


def test_one_answer_is_shrunk_to_its_arm_and_that_to_all() -> None:
    """The prior weighs as much as 1.5 answers: 0.4 / 2.5 over all, (0.4 + 1.5 * 0.16) / 2.5 of the arm."""
    correction = made((0, 0, 0.4))
    assert correction.residuals() == pytest.approx(np.asarray([[0.3136, 0.16], [0.256, 0.16], [0.256, 0.16]]))
    assert correction.answers == [1.0, 0.0]


def test_an_answer_of_a_key_with_many_counts_by_its_weight() -> None:
    correction = made(config=CorrectionConfig(window=10, max_log_step=0.5))
    correction.update(0, 0, 0.4)
    correction.update(0, 0, 0.4, weight=0.5)
    assert correction.weight(0, 0) == pytest.approx(0.95 + 0.5)
    assert correction.answers == [1.5, 0.0]
    bounded = correction.residual(0, 0) + 0.5
    correction.update(0, 0, 100.0)
    assert correction.local_state()["sums"][0][0] == pytest.approx(0.9 * 0.4 * 1.45 + bounded)
    correction.update(1, 1, -100.0)
    assert correction.local_state()["sums"][1][1] < 0


def test_the_error_of_a_level_has_a_prior_of_two_answers() -> None:
    """Of n equal answers, sqrt(2 * 0.0625 / (n + 2) / n)."""
    correction = made((0, 0, 0.3), (1, 0, 0.3))
    weights, errors = correction.level_errors()
    assert weights.tolist() == [2.0, 0.0]
    assert errors[0] == pytest.approx((0.125 / 4 / 2) ** 0.5)
    correction.update(2, 1, 0.2)
    assert correction.level_errors()[1][1] == pytest.approx((0.125 / 3) ** 0.5)


def test_a_router_of_an_earlier_version_tells_no_squares() -> None:
    """Its answers are taken to vary as the prior says."""
    one = made()
    one.merge([{"weights": [[4.0, 0.0], [0.0] * 2, [0.0] * 2], "sums": [[2.0, 0.0], [0.0] * 2, [0.0] * 2]}])
    assert one.weight(0, 0) == 4.0
    assert one.level_errors()[1][0] == pytest.approx(0.25 / 2)


def test_an_arm_without_answers_leans_on_all() -> None:
    correction = made(*((0, 0, 0.6) for _ in range(50)))
    assert correction.residual(0, 0) > correction.residual(1, 0) > correction.residual(1, 1) > 0


def test_what_is_doubted_counts_less() -> None:
    correction = made(*((0, 0, 0.6) for _ in range(50)))
    before = correction.weight(0, 0)
    correction.merge([made((0, 0, 0.6)).local_state()])
    correction.discount(0.2)
    assert correction.weight(0, 0) == pytest.approx(0.2 * before + 1.0)  # what others tell is theirs to doubt


# --- of other routers ---


def test_news_are_taken_instead_of_those_before_and_cost_nothing_of_ones_own() -> None:
    one, other = made((0, 0, 0.5)), made(*((0, 1, 0.5) for _ in range(30)))
    alone = one.residuals()
    for _ in range(3):
        one.merge([other.local_state()])
    assert one.weight(0, 1) == pytest.approx(other.weight(0, 1))
    assert one.local_state() == made((0, 0, 0.5)).local_state()
    one.merge([])
    assert one.residuals() == pytest.approx(alone)


def test_what_others_saw_of_a_forgotten_arm_is_forgotten_too() -> None:
    one, other = made((0, 0, 0.5)), made(*((0, 1, 0.5) for _ in range(30)))
    one.merge([other.local_state()])
    one.reset_arm(1)
    assert one.weight(0, 1) == 0
    assert one.weight(0, 0) > 0
    one.update(0, 1, 0.5)
    assert one.weight(0, 1) == 1


@pytest.mark.parametrize(
    "found",
    [
        [], "x", None, {}, {"weights": 1, "sums": 2}, {"weights": [[1.0]] * BINS, "sums": [[1.0, 2.0]] * BINS},
        {"weights": [[1.0, 1.0]] * BINS, "sums": [[1.0, "x"]] * BINS},
        {"weights": [[1.0, 1.0]] * BINS, "sums": [[1.0, float("nan")]] * BINS},
        {"weights": [[-40.0, 1.0]] * BINS, "sums": [[1.0, 1.0]] * BINS},
        {"weights": [[1.0] * 5] * BINS, "sums": [[1.0] * 5] * BINS},
    ],
)  # fmt: skip
def test_what_is_no_news_is_left_out_and_the_rest_is_taken(found: Any) -> None:
    one, other = made(), made((0, 0, 0.5))
    one.merge([found, other.local_state()])
    assert one.residuals() == pytest.approx(other.residuals())


def test_before_its_first_answer_an_arm_has_its_prior_correction() -> None:
    """It is part of the mean to which an arm is shrunk: 0.4 / 2.5 + 0.2 over all, (0.4 + 1.5 * 0.36) / 2.5."""
    correction = ResidualCorrection(CONFIG, 2, 2, prior=[0.2, -0.1])
    assert correction.residuals() == pytest.approx(np.asarray([[0.2, -0.1]] * 2))
    correction.update(0, 0, 0.4)
    assert correction.residuals() == pytest.approx(np.asarray([[0.3856, 0.06], [0.376, 0.06]]))
    assert correction.residual(0, 0) == pytest.approx(0.3856)
    assert correction.residual(1, 1) == pytest.approx(0.06)
