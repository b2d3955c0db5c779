"""The learner of docs/extending.md: on a bandit whose best arms are known, it finds them."""

from pathlib import Path

import numpy as np

from draftpick.policy_training.learners import learner
from draftpick.policy_training.train import train_policy
from draftpick.router.policies import read
from draftpick.router.types import Context
from tests.policy_training.bandit import ARMS, BEST, SETTING, Bandit


def test_the_served_policy_takes_the_best_arm(tmp_path: Path) -> None:
    train_policy(Bandit.draw(200, seed=0).matrix(), learner("nearest"), SETTING, tmp_path / "policy", {})
    served, fresh = read(tmp_path / "policy"), Bandit.draw(300, seed=1)
    everywhere = np.ones(len(ARMS), bool)
    chosen = [served.probabilities(Context(v, "features"), everywhere).argmax() for v in fresh.contexts]
    assert (np.asarray(chosen) == BEST[fresh.clusters]).mean() > 0.95
