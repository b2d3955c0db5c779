"""`draftpick keys`, and configurations that are shown without their secrets."""

import json
import stat
from pathlib import Path

import pytest

from draftpick.router.config.sections import KeysConfig
from draftpick.router.http.auth import Keyring, digest
from tests.deploy.cli.test_main import FLEET, fleet_file, invoke, words


def test_a_new_key_is_shown_once_and_its_hash_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    run = invoke("keys", "new", "team", "--file", str(file), "--rpm", "60", "--expires", "2999-01-01", "--json")
    secret = json.loads(run.stdout)["key"]
    assert run.exit_code == 0
    assert secret not in file.read_text()
    assert digest(secret) in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = Keyring(KeysConfig(file=file), {}).authenticate({"authorization": f"Bearer {secret}"})
    assert (key.name, key.requests_per_minute, key.scopes) == ("team", 60, ("chat",))


def test_keys_are_added_and_listed_without_hashes(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.yaml")
    invoke("keys", "new", "team", "--file", file)
    invoke("keys", "new", "boss", "--file", file, "--admin", "--priority", "high")
    listed = json.loads(invoke("keys", "list", "--file", file, "--json").stdout)
    assert [(key["name"], key["scopes"]) for key in listed] == [("team", ["chat"]), ("boss", ["chat", "admin"])]
    assert "sha256" not in invoke("keys", "list", "--file", file).stdout


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.yaml")
    invoke("keys", "new", "team", "--file", file)
    run = invoke("keys", "new", "team", "--file", file)
    assert run.exit_code == 2
    assert "already" in words(run.stderr)


@pytest.mark.parametrize("shown", [["--json"], []])
def test_a_shown_configuration_has_no_secret(tmp_path: Path, shown: list[str]) -> None:
    engines = [
        {"name": "plain", "kind": "mock", "deployment": {"env": {"HF_HOME": "hidden-1"}}},
        {"name": "far", "url": "http://user:hidden-2@127.0.0.1:9"},
        {"name": "own", "engine_kwargs": {"api_key": "hidden-3", "hf_token": "hidden-4", "max_model_len": 5}},
    ]
    source = {"source": "org/model"}
    run = invoke("check-config", fleet_file(tmp_path, engines=engines, target=source), *shown)
    assert "hidden" not in run.stdout + run.stderr
    if shown:
        assert json.loads(run.stdout)["config"]["engines"][2]["engine_kwargs"]["max_model_len"] == 5


@pytest.mark.parametrize(
    "text", ["router: {keys: {file: [hidden]}}", "a: 'hidden", "engines: [{name: plain, deployment: {env: hidden}}]"]
)
def test_an_error_shows_no_value_of_a_wrong_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    run = invoke("check-config", str(path), "--json")
    assert run.exit_code == 2
    assert "hidden" not in run.stdout + run.stderr


def test_a_missing_file_of_keys_is_reported_immediately(tmp_path: Path) -> None:
    router = {**FLEET["router"], "keys": {"file": str(tmp_path / "none.yaml")}}
    run = invoke("check-config", fleet_file(tmp_path, router=router), "--json")
    assert "router.keys.file" in json.loads(run.stdout)["problems"][0]
