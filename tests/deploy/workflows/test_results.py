"""Results of measurements: one form, with what is needed to measure again."""

import json
import platform
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftpick.deploy.workflows.results import command_line, machine, versions, write
from draftpick.policy_training.evaluation.evaluate import Interval

FIGURES = {"policy_vs_plain": Interval(1.234567, 1.1, 1.39999), "speedup/ngram": Interval(0.5, 0.5, 0.5)}


def written(path: Path, **options: Any) -> dict[str, Any]:
    write(path, 42, FIGURES, **options)
    return dict(json.loads(path.read_text()))


def test_form(tmp_path: Path) -> None:
    result = written(tmp_path / "result.json")
    assert list(result) == ["command", "machine", "versions", "n", "figures"]
    assert result["n"] == 42
    assert result["machine"] == machine()
    assert result["versions"] == versions()


def test_figures_have_a_value_and_an_interval_of_four_decimals(tmp_path: Path) -> None:
    assert written(tmp_path / "result.json")["figures"] == {
        "policy_vs_plain": {"value": 1.2346, "low": 1.1, "high": 1.4},
        "speedup/ngram": {"value": 0.5, "low": 0.5, "high": 0.5},
    }


def test_figures_of_numpy_are_written(tmp_path: Path) -> None:
    one = np.float64(1.5)
    write(tmp_path / "result.json", 1, {"ratio": Interval(one, one, one)})
    assert json.loads((tmp_path / "result.json").read_text())["figures"]["ratio"]["value"] == 1.5


def test_details_accompany_the_figures(tmp_path: Path) -> None:
    result = written(tmp_path / "result.json", verdict="The policy won.", by_kind={"edit": {"plain": 1.0}})
    assert result["verdict"] == "The policy won."
    assert result["by_kind"] == {"edit": {"plain": 1.0}}


@pytest.mark.parametrize("said", ["range of 3 runs", {"speedup/": "range of 3 runs"}])
def test_a_result_says_what_its_brackets_are(tmp_path: Path, said: str | dict[str, str]) -> None:
    result = written(tmp_path / "result.json", bracket=said)
    assert result["bracket"] == said
    assert list(result)[-2:] == ["bracket", "figures"]


def test_the_command_is_that_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/draftpick", "demo", "--output-dir", "/some/where/else"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert written(tmp_path / "a.json")["command"] == "draftpick demo --output-dir else"


def test_the_command_of_a_module_is_one_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/tests/bench/lossless.py", "-n", "24"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("tests.bench.lossless", None))
    assert command_line() == "python -m tests.bench.lossless -n 24"


def test_missing_folders_are_made_and_an_old_result_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "demo" / "result.json"
    assert written(path, verdict="old")["verdict"] == "old"
    assert "verdict" not in written(path)
    assert path.read_text().endswith("}\n")


def test_versions_are_those_of_the_packages_that_are_installed() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["numpy"] == np.__version__
    assert all(found.values())


def test_machine_in_words() -> None:
    assert " cores, " in machine()
    assert machine().removesuffix(", no bfloat16").endswith(f" GiB, {platform.system()}")


def test_a_command_names_no_path_of_this_machine() -> None:
    told = command_line(["/a/draftpick", "--prompts", "/c/d.jsonl:math@5", "--target", "org/model"])
    assert told == "draftpick --prompts d.jsonl:math@5 --target org/model"
