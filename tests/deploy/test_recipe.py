"""The image's recipe can be executed without a container engine: its instructions are known, its context is right."""

from pathlib import Path

import pytest

from tests.bench.recipe import WORDS, Stage, copy_context
from tests.bench.roots import mounts_of, pip_settings
from tests.deploy.test_assets import ROOT, instructions


def test_every_instruction_is_known() -> None:
    assert {word for word, _ in instructions("cpu.Dockerfile")} <= WORDS


def test_the_context_is_what_is_let_through(tmp_path: Path) -> None:
    copy_context(ROOT, tmp_path / "context")
    found = {str(path.relative_to(tmp_path / "context")) for path in (tmp_path / "context").rglob("*")}
    assert {"router/router.py", "deploy/fleets/mock.yaml", "pyproject.toml", "requirements-cpu.lock"} <= found
    assert not any(path.startswith(("tests", "data", "deploy/docker", ".")) for path in found)
    assert not any("__pycache__" in path for path in found)


def test_paths_of_a_stage_begin_at_its_folder(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {}, folder="/build")
    assert stage.inside(".") == tmp_path / "build"
    assert stage.inside("/opt/venv") == tmp_path / "opt" / "venv"


def test_indexes_on_the_disk_are_reached_and_nothing_is_written_there(tmp_path: Path) -> None:
    (tmp_path / "index" / "simple").mkdir(parents=True)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    settings = {
        "PIP_EXTRA_INDEX_URL": f"file://{tmp_path}/index/simple https://a.test/x",
        "PIP_FIND_LINKS": str(wheels),
    }
    assert list(mounts_of(settings)) == [
        ("--bind", "-o", "ro", str(tmp_path / "index"), str(tmp_path / "index")),
        ("--bind", "-o", "ro", str(wheels), str(wheels)),
    ]


def test_settings_of_pip_come_as_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://a.test/simple https://b.test/simple")
    assert pip_settings()["PIP_EXTRA_INDEX_URL"] == "https://a.test/simple https://b.test/simple"
    assert "PIP_NO_CACHE_DIR" not in pip_settings(), "that is the recipe's own matter"
