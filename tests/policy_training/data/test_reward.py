"""The reward: seconds saved against the default engine."""

import numpy as np
import pytest

from draftpick.policy_training.data.reward import alignment_and_cost, log_tau, relative_seconds_saved, seconds_saved
from tests.policy_training.bandit import Bandit

TIMES = np.asarray([[4.0, 3.0, 6.0], [1.0, 2.5, 0.5]])


def test_known_seconds() -> None:
    assert seconds_saved(TIMES, 0).tolist() == [[0.0, 1.0, -2.0], [0.0, -1.5, 0.5]]
    assert seconds_saved(TIMES, 2).tolist() == [[2.0, 3.0, 0.0], [-0.5, -2.0, 0.0]]


def test_the_times_stay_as_they_are() -> None:
    times = TIMES.copy()
    seconds_saved(times, 1)
    assert (times == TIMES).all()


def test_most_reward_is_least_time() -> None:
    bandit = Bandit.draw(100, seed=0)
    for default in range(4):
        reward = seconds_saved(bandit.time_s, default)
        assert (reward.argmax(1) == bandit.time_s.argmin(1)).all()
        assert reward.mean(0).argmax() == bandit.time_s.sum(0).argmin()


def test_other_rewards_of_known_values() -> None:
    assert relative_seconds_saved(TIMES, 0).tolist() == [[0.0, 0.4, -0.8], [0.0, -0.6, 0.2]]
    assert log_tau(np.asarray([1.0, np.e, 0.5])).tolist() == [0.0, 1.0, 0.0]


def test_the_papers_reward_trades_alignment_for_speed() -> None:
    alignment, speed = np.asarray([[0.8, 0.2]]), np.asarray([0.1, 0.9])
    assert alignment_and_cost(alignment, speed, 1.0).tolist() == [[0.8, 0.2]]
    assert alignment_and_cost(alignment, speed, 0.0).tolist() == [[0.1, 0.9]]
    np.testing.assert_allclose(alignment_and_cost(alignment, speed, 0.5), [[0.45, 0.55]])
    with pytest.raises(ValueError, match=r"alpha is 1\.5"):
        alignment_and_cost(alignment, speed, 1.5)
