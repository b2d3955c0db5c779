"""`draftpick policies`: what a person sees and does of a registry."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from draftpick.deploy.cli import main as cli
from draftpick.deploy.cli.policies import registry_app
from draftpick.router.errors import PolicyRejected
from draftpick.router.policies import read
from draftpick.router.registry.registry import Registry
from tests.deploy.artefact import write_policy
from tests.deploy.cli.test_main import words

app = typer.Typer()
app.add_typer(registry_app, name="policies")


class Person:
    """Somebody at the command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = folder / "registry"
        self._env = {"COLUMNS": "200", "TERM": "dumb", "DRAFTPICK_REGISTRY": str(self.registry)}

    def types(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["policies", *arguments], env=self._env)

    def adds(self, dimension: int = 3, *arguments: str) -> str:
        policy = write_policy(self.folder / "policy", dimension=dimension)
        run = self.types("add", str(policy), *arguments)
        assert run.exit_code == 0, run.output
        return run.stdout.strip()

    def gets(self, *arguments: str) -> Any:
        run = self.types(*arguments, "--json")
        assert run.exit_code == 0, run.output
        return json.loads(run.stdout)

    def is_told(self, *arguments: str) -> str:
        run = self.types(*arguments)
        assert run.exit_code == 1
        assert isinstance(run.exception, PolicyRejected)
        return str(run.exception)


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


@pytest.fixture
def two(person: Person) -> Person:
    """p0001 is active, p0002 was added."""
    person.adds(1, "--reason", "the first [of all]")
    person.adds(2)
    return person


def test_a_folder_is_added_and_activated_in_one_step(two: Person) -> None:
    policy = write_policy(two.folder / "third", dimension=5)
    assert two.gets("activate", str(policy), "--reason", "better") == {"id": "p0003", "active": True}
    state = Registry(two.registry).state()
    assert (state.active, state.previous, state.history[-1].reason) == ("p0003", "p0001", "better")
    assert "is not a readable policy" in two.is_told("activate", "uniform")


def test_a_registry_and_a_cluster_exclude_each_other(two: Person) -> None:
    run = two.types("activate", str(two.folder / "policy"), "--ray-address", "auto")
    assert run.exit_code == 2
    assert "not both" in words(run.stderr)


def test_the_first_policy_becomes_active(person: Person) -> None:
    assert person.adds() == "p0001"
    assert person.adds(4) == "p0002"
    state = Registry(person.registry).state()
    assert (state.active, state.policies["p0002"].stage) == ("p0001", "shadow")
    assert {change.by for change in state.history} == {"command line"}
    assert person.gets("add", str(person.folder / "policy")) == {"id": "p0003", "active": False}


def test_policies_are_listed(two: Person) -> None:
    two.types("pin", "p0001")
    two.types("canary", "p0002", "0")
    shown = [words(line) for line in two.types("list").stdout.splitlines()]
    policy = read(two.registry / "policies" / "p0001").id
    assert any(f"p0001 │ active │ │ {policy} │ 2" in line and "active, pinned" in line for line in shown)
    assert any("p0002 │ shadow │ 0 %" in line and "candidate" in line for line in shown)
    rows = two.gets("list")
    assert [(row["id"], row["stage"], row["share"], row["notes"]) for row in rows] == [
        ("p0001", "active", None, ["active", "pinned"]),
        ("p0002", "shadow", 0.0, ["candidate"]),
    ]
    assert rows[0]["policy"] == policy


def test_a_policy_is_shown_with_its_report(two: Person) -> None:
    shown = two.types("show", "p0001").stdout
    assert "stage: active" in shown
    assert '"reason": "the first [of all]"' in shown
    found = two.gets("show", "p0001")
    assert (found["id"], found["stage"], found["arms"]) == ("p0001", "active", ["plain", "ngram"])
    assert found["report"] == {"reason": "the first [of all]"}
    assert {"policy", "created", "folder", "featurizer", "provenance"} <= set(found)


def test_a_canary_is_promoted_and_rolled_back(two: Person) -> None:
    assert words(two.types("canary", "p0002", "0.07").stdout) == "p0002 decides 7 % of the requests"
    assert two.gets("list")[1]["share"] == 0.07
    assert words(two.types("promote", "p0002", "--reason", "good").stdout) == "p0002 is active"
    assert two.gets("list")[0]["notes"] == ["previous"]
    assert words(two.types("rollback", "--reason", "bad").stdout) == "p0001 is active again"
    assert two.gets("list")[1]["stage"] == "refused"
    assert two.is_told("rollback") == "there is no previous policy to go back to (draftpick policies promote ID)"


def test_a_canary_takes_the_place_of_another(two: Person) -> None:
    two.adds(4)
    two.types("canary", "p0002", "0.1")
    assert two.gets("canary", "p0003", "1") == {"id": "p0003", "share": 1.0}
    assert [row["stage"] for row in two.gets("list")] == ["active", "retired", "canary"]


@pytest.mark.parametrize("share", ["1.1", "-0.1", "much"])
def test_a_share_is_a_share(two: Person, share: str) -> None:
    run = two.types("canary", "--", "p0002", share)
    assert run.exit_code == 2
    assert "invalid value for" in words(run.stderr).lower()
    assert "share" in run.stderr.lower()


def test_a_pinned_policy_stays(two: Person) -> None:
    assert two.gets("pin", "p0002") == {"active": "p0002", "previous": "p0001", "pinned": True}
    for command in (("promote", "p0001"), ("canary", "p0001", "0.1"), ("rollback",)):
        assert two.is_told(*command) == "p0002 is pinned (draftpick policies unpin)"
    assert two.gets("list")[0]["stage"] == "retired"
    assert words(two.types("unpin").stdout) == "nothing is pinned"
    assert two.gets("promote", "p0001")["active"] == "p0001"


def test_the_history_is_shown(two: Person) -> None:
    two.types("promote", "p0002", "--reason", "by [hand]")
    changes = two.gets("history")
    assert [change["action"] for change in changes] == ["add", "promote", "add", "promote"]
    assert (changes[-1]["policy"], changes[-1]["reason"]) == ("p0002", "by [hand]")
    assert "│ promote │ p0002 │ command line │ by [hand] │" in words(two.types("history").stdout)


def test_old_policies_are_removed(two: Person) -> None:
    for number in range(3, 7):
        two.types("promote", two.adds(number))
    assert two.types("prune").exit_code == 2
    assert two.types("prune", "--keep", "0").exit_code == 2
    two.types("promote", "p0002")
    assert words(two.types("prune", "--keep", "2").stdout) == "removed: p0001, p0003"
    assert two.gets("prune", "--keep", "2") == {"removed": []}
    assert [row["id"] for row in two.gets("list")] == ["p0002", "p0004", "p0005", "p0006"]


def test_a_registry_must_be_named(tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["policies", "list"], env={"DRAFTPICK_REGISTRY": None, "TERM": "dumb"})
    assert run.exit_code == 2
    assert "--registry" in run.stderr


@pytest.mark.parametrize(
    "command", ["list", "show p0001", "promote p0001", "pin p0001", "unpin", "rollback", "history"]
)
def test_a_folder_without_a_registry_is_reported(person: Person, command: str) -> None:
    assert "is not a registry (create one: draftpick policies add FOLDER --registry " in person.is_told(
        *command.split()
    )
    assert not person.registry.exists()


def test_an_error_is_one_line(two: Person, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(sys, "argv", ["draftpick", "policies", "show", "p0007", "--registry", str(two.registry)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr().err
    assert ended.value.code == 1
    assert words(told) == "error: unknown policy 'p0007' (did you mean 'p0002'? see: draftpick policies list)"
    assert told.count("\n") == 1


def test_an_invalid_policy_is_reported(person: Person, tmp_path: Path) -> None:
    assert f"{tmp_path} is not a readable policy" in person.is_told("add", str(tmp_path))
    assert not person.registry.exists()


@pytest.mark.parametrize(
    "name", ["list", "show", "add", "canary", "promote", "pin", "unpin", "rollback", "history", "prune"]
)
def test_help(person: Person, name: str) -> None:
    shown = words(person.types(name, "--help").stdout)
    assert f"policies {name}" in shown
    assert "DRAFTPICK_REGISTRY" in shown
