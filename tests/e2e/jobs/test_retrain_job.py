"""`draftpick retrain` as a Ray Job on a running cluster, and Ray Data that reads segments for it."""

import subprocess
import sys
from pathlib import Path

import pytest

from draftpick.policy_training.data.record_store import RecordStore
from draftpick.router.registry.registry import Registry
from tests.policy_training.retraining.test_pipeline import log, put, trained

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture
def records(tmp_path: Path) -> str:
    put(tmp_path / "records", log(range(1200)))
    return put(tmp_path / "records", log(range(1200, 2400)), "records-2.jsonl")


def retrain(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "draftpick", "retrain", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_runs_as_a_job_and_its_exit_code_comes_back(dashboard: str, records: str, tmp_path: Path) -> None:
    """A job that succeeds is the first night of `test_example_nightly`."""
    registry = Registry(tmp_path / "registry")
    trained(tmp_path, log(range(2400)))
    places = ["--registry", str(registry.path), "--submit", dashboard]
    assert retrain("--records", records, *places).returncode == 3  # no better than the first: refused
    assert registry.state().policies["p0002"].stage == "refused"
    assert retrain("--records", str(tmp_path / "nothing"), *places).returncode == 1


def test_ray_data_reads_the_same_records(dashboard: str, records: str) -> None:
    ids = [[r.request_id for r in RecordStore(records, workers).records()] for workers in (0, 2)]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 2400
