"""docs/extending.md, done as it stands there: its files and changes are laid over the tree, and its tests run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.docs.code_blocks import Block, blocks
from tests.deploy.overlay import ROOT, changed, lay_over

PAGE = ROOT / "docs" / "extending.md"
GUARDS = (
    "tests/router/features/test_lexical.py",
    "tests/engines/test_config.py",
    "tests/policy_training/learners/test_learners.py",
)
"""Tests of the tree that the page names, as far as they read the new names by themselves; of all learners: the new."""


def named() -> list[Block]:
    return [block for block in blocks(PAGE) if block.name is not None]


def run(folder: Path, *arguments: str) -> None:
    found = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, f"{arguments}\n{found.stdout[-4000:]}\n{found.stderr[-2000:]}"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    lay_over(named(), folder)
    return folder


def test_what_the_page_builds_passes_its_own_tests_and_those_of_the_tree(tree: Path) -> None:
    own = [block.name for block in named() if block.name and Path(block.name).name.startswith("test_")]
    assert len(own) == 3
    run(tree, "pytest", "-q", "-p", "no:cacheprovider", *own, *GUARDS, "-k", "not test_learners or nearest")


def test_the_fleet_of_the_page_is_valid_there(tree: Path) -> None:
    run(tree, "draftpick", "check-config", "fleet.yaml")


def test_the_code_of_the_page_is_formatted_and_linted(tree: Path) -> None:
    files = [block.name for block in named() if block.name and block.name.endswith(".py")]
    run(tree, "ruff", "format", "--check", "--no-cache", *files)
    run(tree, "ruff", "check", "--no-cache", *files)


@pytest.mark.parametrize("text", [" gone\n+new\n", "-a\n+b\n"])
def test_a_change_of_lines_that_are_not_there_once_is_told(text: str) -> None:
    with pytest.raises(AssertionError, match=r"line 3: x\.py does not hold once"):
        changed("a\na\n", Block("diff", text, 3, "x.py"))
