"""The example that retrains from records: here and as a Ray Job, with the exit codes that a scheduler sees."""

import subprocess
import sys
from pathlib import Path

import pytest

from draftpick.router.registry.registry import Registry
from tests.policy_training.retraining.test_pipeline import log, put

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture
def records(tmp_path: Path) -> str:
    return put(tmp_path / "records", log(range(2400)))


def nightly(*arguments: str) -> tuple[int, str]:
    """Exit code and line of a night."""
    command = [sys.executable, "-m", "draftpick.deploy.examples.nightly", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    return done.returncode, done.stdout


def test_nights_on_a_cluster_and_here(dashboard: str, records: str, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    places = ["--records", records, "--registry", str(registry)]
    first = nightly(*places, "--cluster", dashboard)
    assert first == (0, "p0001 is active: it is the first policy of its registry\n")
    code, said = nightly(*places)  # no better than the first
    assert (code, said.split(":")[0]) == (0, "p0002 is rejected, the active policy stays")
    assert Registry(registry).state().active == "p0001"
    code, said = nightly(*places, "--no-require-significance")  # which leaves the proof to live traffic
    assert (code, said.split(":")[0]) == (0, "p0003 is a candidate")


def test_a_failed_night_is_tried_again_and_wrong_usage_is_not(tmp_path: Path) -> None:
    registry = str(tmp_path / "registry")
    assert nightly("--records", str(tmp_path / "nothing"), "--registry", registry)[0] == 1
    assert nightly("--records", str(tmp_path), "--registry", registry, "--canary-shares", "1,0")[0] == 2
