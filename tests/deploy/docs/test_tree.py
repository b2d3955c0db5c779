"""docs/architecture.md against the code: every folder with Python modules has one line, no line lacks its folder, and
every name in the text is a name in the code."""

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.deploy.docs.links import code

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("engines", "router", "policy_training", "deploy")
HEADING = "Folders"
_LINE = re.compile(r"(\S+)/ +\S.*")


def listed(text: str) -> list[str]:
    """The folders that the page lists, in its order. Raises ValueError for a line without a folder or a text."""
    tokens = MarkdownIt().parse(text)
    start = next(i for i, token in enumerate(tokens) if token.content == HEADING)
    block = next(token.content for token in tokens[start:] if token.type == "code_block")
    folders = []
    for line in block.splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"not `FOLDER/ TEXT`: {line!r}")
        folders.append(found[1])
    return folders


def with_modules(root: Path) -> list[str]:
    """The folders of the four packages that hold Python modules, sorted by package and path."""
    return [
        folder.relative_to(root).as_posix()
        for name in PACKAGES
        for folder in sorted({path.parent for path in (root / name).rglob("*.py")})
    ]


def test_every_folder_has_one_line_and_every_line_a_folder() -> None:
    assert listed(PAGE.read_text()) == with_modules(ROOT)


def test_every_name_is_in_the_code() -> None:
    modules = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    words = {word for path in modules for word in re.findall(r"\w+", path.read_text())}
    named = {one.text for one in code(PAGE) if re.fullmatch(r"\w+", one.text)}
    assert len(named) > 15
    assert not named - words


def test_folders_are_read_from_the_page_and_from_disk(tmp_path: Path) -> None:
    for name in ("engines/a.py", "engines/own/c.py", "engines/own/d.py", "router/deep/er/e.py", "deploy/helm/x.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert with_modules(tmp_path) == ["engines", "engines/own", "router/deep/er"]
    page = f"# A\n\n    no/ folder\n\n## {HEADING}\n\n    engines/      what runs\n    engines/own/  ours\n"
    assert listed(page) == ["engines", "engines/own"]


@pytest.mark.parametrize("line", ["engines", "engines/", "what runs"])
def test_a_line_that_names_no_folder_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match="FOLDER"):
        listed(f"## {HEADING}\n\n    {line}\n")
