"""docs/extending.md, executed: each section's code is applied to a copy of the tree, and a check of it runs there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.docs.code_blocks import Block, blocks
from tests.deploy.overlay import ROOT, changed, changed_files, lay_over

PAGE = ROOT / "docs" / "extending.md"
RECIPES = (
    *("A drafter", "A policy", "A learner", "A feature", "A gate", "A metric", "A request header"),
    "An engine health signal",
)
ALTERNATIVES = {"A metric"}
"""Recipes whose blocks are examples of one step each: every block is a change of its own."""
MAX_FILES, MAX_LINES = 2, 80
GUARDS = (
    "tests/router/features/test_lexical.py",
    "tests/engines/test_config.py",
    "tests/policy_training/learners/test_learners.py",
)
"""Tests of the tree that cover new entries of its tables by themselves; of all learners: the new one."""


def sections() -> dict[str, str]:
    """The text of each section of the page by its heading."""
    _, *found = re.split(r"^## (.+)\n", PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(found[::2], found[1::2], strict=True))


def named(section: str | None = None) -> list[Block]:
    """The blocks that are files or changes of files, of one section or of all."""
    lines = PAGE.read_text().splitlines()
    headings = [line[3:] if line.startswith("## ") else None for line in lines]
    found = []
    for block in blocks(PAGE):
        heading = next((name for name in reversed(headings[: block.line]) if name is not None), None)
        if block.name is not None and section in (None, heading):
            found.append(block)
    return found


def run(folder: Path, *arguments: str) -> None:
    found = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
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


def test_every_recipe_is_there() -> None:
    assert [*sections()] == [*RECIPES, "Smaller things"]


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_is_short_and_touches_at_most_two_files_of_the_product(title: str, tmp_path: Path) -> None:
    text = re.sub(r"<!-- block: fleet.yaml -->\n```yaml\n.*?```\n", "", sections()[title], flags=re.DOTALL)
    assert len(text.splitlines()) <= MAX_LINES
    steps = [[one] for one in named(title)] if title in ALTERNATIVES else [named(title)]
    for i, step in enumerate(steps):
        lay_over(step, tmp_path / str(i))
        assert 1 <= len(changed_files(tmp_path / str(i))) <= MAX_FILES, changed_files(tmp_path / str(i))


def test_the_product_picks_up_what_the_page_adds(tree: Path) -> None:
    checks = sorted(path.name for path in (Path(__file__).parent / "recipes").glob("[a-z]*.py"))
    assert len(checks) == len(RECIPES)
    paths = [f"tests/deploy/docs/recipes/{name}" for name in checks]
    run(tree, "pytest", "-q", "-p", "no:cacheprovider", *paths, *GUARDS, "-k", "not test_learners or nearest")


def test_the_fleet_of_the_page_is_valid_there(tree: Path) -> None:
    run(tree, "draftpick", "check-config", "fleet.yaml")


def test_the_code_of_the_page_is_formatted_and_linted(tree: Path) -> None:
    files = [str(path) for path in changed_files(tree)]
    run(tree, "ruff", "format", "--check", "--no-cache", *files)
    run(tree, "ruff", "check", "--no-cache", *files)


@pytest.mark.parametrize("text", [" gone\n+new\n", "-a\n+b\n"])
def test_a_change_of_lines_that_are_not_there_once_is_told(text: str) -> None:
    with pytest.raises(AssertionError, match=r"line 3: x\.py does not hold once"):
        changed("a\na\n", Block("diff", text, 3, "x.py"))
