"""`draftpick retrain` and `draftpick events`, as a user types them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from draftpick.deploy.cli.retrain import REJECTED, retrain_app
from draftpick.router.online.events import Event
from draftpick.router.online.peer_store import PeerStore
from draftpick.router.registry.registry import Registry
from tests.policy_training.retraining.test_pipeline import log, put


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(retrain_app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("records")
    PeerStore(folder / "online").write_events([Event(1.0, "arm_changed", "engine math: slower", "math")])
    return put(folder, log(range(2400)))


def test_a_candidate_is_made_and_one_that_is_no_better_is_refused_with_its_own_exit_code(
    records: str, tmp_path: Path
) -> None:
    places = ["retrain", "--records", records, "--registry", str(tmp_path / "registry")]
    code, said = run(*places, "--json")
    assert code == 0
    assert json.loads(said.splitlines()[-1])["action"] == "promoted"
    code, said = run(*places)
    assert code == REJECTED
    assert "p0002: refused" in said
    assert Registry(tmp_path / "registry").state().active == "p0001"


@pytest.mark.parametrize("stages", ["0.1,x", "0.3,0.1", "0.1,1", "0"])
def test_stages_that_there_are_not_are_wrong_usage(records: str, tmp_path: Path, stages: str) -> None:
    assert run("retrain", "--records", records, "--registry", str(tmp_path), "--canary-shares", stages)[0] == 2


def test_events_are_shown_to_people_and_to_programs(records: str) -> None:
    assert "arm_changed        engine math: slower" in run("events", "--records", records)[1]
    assert json.loads(run("events", "--records", records, "--json")[1])["arm"] == "math"
    assert "nothing happened" in run("events", "--records", records, "--since", "1")[1]
