"""`make check` finds what the rules of structure forbid."""

from pathlib import Path

import pytest

from tests.structure import MAX_ENTRIES, MAX_FUNCTION_LINES, MAX_README_LINES, PACKAGES, breaches, breaches_in


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text("line\n" * MAX_README_LINES)
    for package in (*PACKAGES, "tests"):
        (tmp_path / package).mkdir()
    for number in range(MAX_ENTRIES):
        (tmp_path / "router" / f"part_{number}.py").write_text("")
    return tmp_path


def test_a_tree_at_the_bounds_has_no_breach(tree: Path) -> None:
    assert not list(breaches(tree))


def test_a_folder_of_too_many_modules_is_a_breach(tree: Path) -> None:
    (tree / "router/more").mkdir()
    (tree / "router/more/__init__.py").write_text("")
    assert [found.split(":")[0] for found in breaches(tree)] == ["router"]


def test_a_long_readme_is_a_breach(tree: Path) -> None:
    (tree / "README.md").write_text("line\n" * (MAX_README_LINES + 1))
    assert [found.split(":")[0] for found in breaches(tree)] == ["README.md"]


def test_a_long_function_is_a_breach() -> None:
    body = "    x = 1\n"
    assert not list(breaches_in("def f():\n" + body * (MAX_FUNCTION_LINES - 1)))
    assert [line for line, _ in breaches_in("def f():\n" + body * MAX_FUNCTION_LINES)] == [1]


@pytest.mark.parametrize("caught", ["", " Exception", " BaseException as error", " (OSError, Exception)"])
def test_a_broad_except_needs_a_reason(caught: str) -> None:
    source = f"try:\n    f()\nexcept{caught}:%s\n    pass\n"
    assert [line for line, _ in breaches_in(source % "")] == [3]
    assert not list(breaches_in(source % "  # a policy may be anybody's code"))


def test_a_named_except_needs_none() -> None:
    assert not list(breaches_in("try:\n    f()\nexcept OSError:\n    pass\n"))
