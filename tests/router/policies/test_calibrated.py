"""The calibrated policy: near the training requests it is the model's, far from them the tasks' mean, and an arm other
than the default must be faster by its upper bound."""

from typing import Any

import numpy as np
import pytest

from draftpick.router import policies
from draftpick.router.errors import PolicyRejected
from draftpick.router.policies.calibrated import CalibratedPolicy
from draftpick.router.policies.neighbourhood import Neighbourhood
from draftpick.router.types import Context, LoadTerms
from tests.router.policies.test_costs import profile

ARMS = ("plain", "ngram", "math")
D = 3
NEAR, FAR = np.zeros(D, np.float32), np.full(D, 9.0, np.float32)
GREEDY, SAMPLED = 0, 1


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    """Near the origin there are 99 requests, with tau 1, 2, 4; the tasks' mean is 1, 1.6, 1.25."""
    conformal = np.zeros((2, 3, 3, 3))
    made = {
        "mean": np.zeros(D), "scale": np.ones(D), "sigma": np.zeros((2, 3)),
        "w": np.zeros((2, D, 3)), "b": np.tile(np.log([1.0, 2.0, 4.0]), (2, 1)),
        "step_s": np.tile([[0.010], [0.012], [0.015]], (1, 2)), "start_s": np.zeros(3), "per_token_s": np.zeros(3),
        "prototypes": np.zeros((1, D)), "prototype_counts": np.asarray([99.0]), "prototype_spreads": np.zeros(1),
        "kernel": np.asarray([1.0, 1.0, 1.0, 3.0, 0.5]), "prior": np.tile([1.0, 1 / 1.6, 0.8], (2, 1)),
        "conformal": conformal,
    }  # fmt: skip
    return {name: np.asarray(array, np.float32) for name, array in (made | changes).items()}


def policy(default: str = "plain", tolerance: float = 0.03, **changes: Any) -> CalibratedPolicy:
    options = {"regressor": "linear", "default": default, "output_tokens": 101.0, "tolerance": tolerance}
    manifest = {"kind": "calibrated", "arms": list(ARMS), "featurizer": "f", "options": options}
    made = policies.make({**manifest, "arrays_sha256": "0" * 64}, arrays(**changes))
    assert isinstance(made, CalibratedPolicy)
    return made


def context(vector: np.ndarray, sampled: bool = False) -> Context:
    return Context(vector, "f", sampled, 10.0, 1000.0)


def chosen(made: CalibratedPolicy, vector: np.ndarray, eligible: tuple[bool, ...] = (True,) * 3, **load: Any) -> str:
    shares = made.score(context(vector), np.asarray(eligible), **load)[0]
    return ARMS[int(np.asarray(shares).argmax())]


def bounds(*upper: float, mode: int = GREEDY, default: int = 0) -> np.ndarray:
    """Quantiles with these upper bounds of log time, against one default arm."""
    found = np.zeros((2, 3, 3, 3))
    found[mode, default, :, 2] = upper
    return found


def test_near_requests_get_the_models_prediction_and_far_ones_the_tasks_mean() -> None:
    made = policy()
    assert made.neighbours(context(NEAR)) == pytest.approx(99)
    assert made.neighbours(context(FAR)) == pytest.approx(0)
    near, far = made.tau(context(NEAR)), made.tau(context(FAR))
    assert near == pytest.approx([1.0, 1 / (0.99 / 2 + 0.01 / 1.6), 1 / (0.99 / 4 + 0.01 * 0.8)])
    assert far == pytest.approx([1.0, 1.6, 1.25])
    assert chosen(made, NEAR) == "math"
    assert chosen(made, FAR) == "ngram"


def test_neighbours_fade_with_the_distance_and_a_wide_prototype_counts_less() -> None:
    near = Neighbourhood(arrays(), D)
    assert near.neighbours(np.asarray([1.0, 0, 0], np.float32)) == pytest.approx(99 * np.exp(-1))
    wide = Neighbourhood(arrays(prototype_spreads=np.ones(1)), D)
    assert wide.neighbours(NEAR) == pytest.approx(99 * np.exp(-1))


@pytest.mark.parametrize(
    ("upper", "arm"),
    [
        ((0.0, 0.0, 0.0), "math"),  # 0.38, 0.60 and 1.00 s
        ((0.0, 0.0, 1.1), "ngram"),  # math may take more than 1.03 s
        ((0.0, 0.6, 1.1), "plain"),
        ((0.0, 0.5, 0.9), "math"),  # both are surely no slower: the least expected time
    ],
)
def test_the_fastest_of_those_whose_upper_bound_is_below_the_defaults_time(upper: tuple[float, ...], arm: str) -> None:
    assert chosen(policy(conformal=bounds(*upper)), NEAR) == arm


def test_the_bound_may_exceed_the_defaults_time_by_the_tolerance() -> None:
    changes: dict[str, Any] = {
        "conformal": bounds(0.0, 9.0, float(np.log(1.02 / 0.375))),
        "kernel": np.asarray([1.0, 1e-9, 1.0, 3.0, 0.5]),
    }
    assert chosen(policy(**changes), NEAR) == "math"
    assert chosen(policy(tolerance=0.0, **changes), NEAR) == "plain"


def test_far_from_everything_the_bound_is_wider() -> None:
    """Novelty 3: twice as wide."""
    upper = bounds(0.0, 0.2, 0.2)
    assert chosen(policy(conformal=upper), FAR) == "plain"
    assert chosen(policy(conformal=upper, kernel=np.asarray([1.0, 1.0, 1.0, 0.0, 0.5])), FAR) == "ngram"


def test_bounds_are_of_the_sampling_mode_and_against_the_default_arm() -> None:
    assert chosen(policy(conformal=bounds(0.0, 9.0, 9.0, mode=SAMPLED)), NEAR) == "math"
    made = policy(conformal=bounds(9.0, 0.0, 9.0, default=1))
    assert chosen(made, NEAR) == "math"
    made.default_arm = 1
    assert chosen(made, NEAR) == "ngram"


def test_without_the_default_the_least_upper_bound_decides() -> None:
    made = policy(conformal=bounds(0.0, 0.0, 1.1))
    assert chosen(made, NEAR, (False, True, True)) == "ngram"
    assert chosen(made, NEAR, (False, False, True)) == "math"


def test_costs_of_this_machine_and_corrections_move_the_choice_and_leave_the_bounds() -> None:
    made = policy(conformal=bounds(0.0, 0.3, 0.3))
    assert chosen(made, NEAR, shifts=[[0.0, 0.0, 1.0]]) == "ngram"
    load = LoadTerms([1, 1, 4], [1, 1, 4], [0, 0, 0], [0, 0, 0], [1, 1, 1])
    assert chosen(made, NEAR, load=load) == "ngram"


def test_with_profiles_of_this_machine_the_default_is_the_best_arm_by_them() -> None:
    """Mean steps per token over the tasks are 1, 0.625 and 0.8."""
    made = policy(default="math")
    assert list(made.use_profiles({})) == []
    assert made.default_arm == 2
    made.use_profiles(
        {
            "ngram": profile(0.012, 0.012, 0.012),
            "math": profile(0.005, 0.005, 0.005),
            "plain": profile(0.010, 0.010, 0.010),
        }
    )
    assert made.default_arm == 2
    made.use_profiles(
        {
            "ngram": profile(0.012, 0.012, 0.012),
            "math": profile(0.015, 0.015, 0.015),
            "plain": profile(0.010, 0.010, 0.010),
        }
    )
    assert made.default_arm == 1
    made.use_profiles(
        {
            "ngram": profile(0.030, 0.030, 0.030),
            "math": profile(0.015, 0.015, 0.015),
            "plain": profile(0.010, 0.010, 0.010),
        }
    )
    assert made.default_arm == 0


def test_the_margins_of_an_explanation_are_those_that_decide() -> None:
    made = policy(conformal=bounds(0.0, 0.6, 1.1))
    terms = made.terms(context(NEAR))
    assert terms is not None
    default_s = terms[0].seconds
    beats = [default_s - term.seconds > term.margin_s for term in terms[1:]]
    assert beats == [False, False]
    assert terms[0].margin_s == 0
    assert terms[2].margin_s == pytest.approx(terms[2].decode_s * np.expm1(1.1 * np.sqrt(1.03)) - 0.03 * default_s)


def test_intervals_are_around_the_forecast_and_wider_far_away() -> None:
    conformal = np.zeros((2, 3, 3, 3))
    conformal[GREEDY, 0, 1] = (-0.1, 0.2, 0.1)
    made = policy(conformal=conformal)
    (_, near, _), (_, far, _) = made.intervals(context(NEAR)), made.intervals(context(FAR))
    assert near == pytest.approx((np.exp(-0.1), np.exp(0.2)), rel=0.02)
    assert far == pytest.approx((np.exp(-0.2), np.exp(0.4)))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kernel": np.asarray([0.0, 1.0, 1.0, 1.0, 1.0])}, "positive gamma"),
        ({"kernel": np.asarray([1.0, 0.0, 1.0, 1.0, 1.0])}, "positive gamma"),
        ({"kernel": np.asarray([1.0, 1.0, 2.0, 1.0, 1.0])}, "a weight"),
        ({"kernel": np.asarray([1.0, 1.0, 1.0, -1.0, 1.0])}, "from 0 on"),
        ({"prior": np.zeros((2, 3))}, "array prior"),
        ({"prototype_counts": np.zeros(1)}, "positive counts"),
        ({"prototypes": np.zeros((1, D + 1))}, "array prototypes has shape"),
        ({"prototypes": np.zeros((0, D)), "prototype_counts": np.zeros(0), "prototype_spreads": np.zeros(0)}, "1 to"),
        ({"conformal": np.zeros((2, 3, 3, 2))}, "array conformal has shape"),
    ],
)
def test_arrays_that_do_not_fit_are_rejected(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(PolicyRejected, match=problem):
        policy(**changes)


def test_a_tolerance_that_is_no_share_is_rejected() -> None:
    with pytest.raises(PolicyRejected, match="tolerance"):
        policy(tolerance=2.0)
