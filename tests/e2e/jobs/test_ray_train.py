"""Networks that two workers of Ray Train fit together: as good as those of one process, and killed runs go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from draftpick.policy_training.learners import learner
from draftpick.policy_training.learners.networks import SoftmaxOptions
from draftpick.policy_training.learners.ray_train import Workers
from draftpick.policy_training.train import fit
from draftpick.router.features.lexical import stored_context
from draftpick.router.policies.mlp import MLPPolicy
from draftpick.router.policies.shapes import Arrays
from draftpick.router.registry.registry import Registry
from tests.policy_training.bandit import SETTING, Bandit
from tests.policy_training.retraining.test_pipeline import good_share, log, put

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

DATA, FRESH, EPOCHS = Bandit.draw(1201, seed=3).matrix(), Bandit.draw(300, seed=9), 800


def test_two_workers_make_a_candidate_that_passes_its_gate(cluster: str, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "draftpick", "retrain", "--records", put(tmp_path / "records", log(range(2400)))),
            *("--registry", str(registry.path), "--learner", "mlp_regression", "--workers", "2"),
        ],
        capture_output=True, text=True, check=False, env={**os.environ, "RAY_ADDRESS": cluster},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert registry.state().active == "p0001"
    assert good_share(registry, "p0001") > 0.9
    assert not list((registry.path / "training").glob("fit-*"))


_RUN = """
import ray, sys
from tests.e2e.jobs.test_ray_train import *
if __name__ == "__main__":
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    fitted_on(Workers(2, sys.argv[1]), EPOCHS)
"""


def fitted_on(workers: Workers | None, epochs: int) -> Arrays:
    """Without dropout all rows make every step: what differs is the order of sums, and the row that has no pair."""
    exact = learner("exact", options=SoftmaxOptions(epochs=epochs, dropout=0.0))
    return fit(DATA, exact, replace(SETTING, workers=workers))[1]


def logits(arrays: Arrays) -> np.ndarray:
    """Of fresh requests [n, arms]."""
    policy = MLPPolicy("p", DATA.arms, "features", arrays)
    return np.stack([policy.logits(stored_context(vector, "features")) for vector in FRESH.contexts])


@pytest.mark.usefixtures("cluster")
def test_two_workers_take_the_steps_that_one_process_takes(tmp_path: Path) -> None:
    one, two = (fitted_on(workers, 40) for workers in (None, Workers(2, str(tmp_path))))
    assert logits(two) == pytest.approx(logits(one), abs=0.1)
    assert np.abs(logits(one)).max() > 2
    assert not list(tmp_path.glob("*/*"))  # checkpoints are gone


@pytest.mark.usefixtures("cluster")
def test_a_run_that_is_killed_goes_on_and_ends_where_one_process_does(tmp_path: Path) -> None:
    folder, copy = tmp_path / "killed", tmp_path / "copy"
    command, local = [sys.executable, "-c", _RUN, str(folder)], {**os.environ, "RAY_ADDRESS": "local"}
    killed = subprocess.Popen(command, start_new_session=True, env=local)
    while not any("checkpoint_dir" in path.read_text() for path in folder.glob("fit-*/*snapshot.json")):
        assert killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    shutil.copytree(folder, copy)
    gone_on, one = (fitted_on(workers, EPOCHS) for workers in (Workers(2, str(folder)), None))
    assert (logits(gone_on).argmax(1) == logits(one).argmax(1)).mean() > 0.97
    # What was kept is what it goes on with: if it says that one step is left, one step is made.
    (told,) = copy.glob("fit-*/*snapshot.json")
    path = told.parent / json.loads(told.read_text())["latest_checkpoint_result"]["checkpoint_dir_name"] / "state.pt"
    kept = torch.load(path, weights_only=True)
    torch.save({**kept, "done": EPOCHS - 1}, path)
    one_step_more = fitted_on(Workers(2, str(copy)), EPOCHS)
    first = kept["model"]["0.weight"].numpy().T
    assert one_step_more["w1"] == pytest.approx(first, abs=0.01)
    assert np.abs(gone_on["w1"] - first).max() > 0.1
