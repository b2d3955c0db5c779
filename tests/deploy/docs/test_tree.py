"""The tree in the README: what it names is there, and every module of the packages has its line."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[3]
PACKAGES = ("engines", "router", "policy_training", "deploy")
HEADING = "Where things are"
_NAMED = re.compile(r"[\w*./-]*[\w*]\.(?:py|md|yaml)\b|[\w*./-]+/(?=\s)")


@dataclass(slots=True)
class Line:
    """A line of the tree: the folder that it stands in, what it names, and whether lines below it tell of its parts."""

    folder: Path
    named: list[str]
    text: str
    has_lines: bool = False
    found: set[Path] = field(default_factory=set)

    @property
    def own(self) -> Path:
        """The folder that the line is of; else where it stands."""
        return self.folder / self.named[0] if self.named and self.named[0].endswith("/") else self.folder

    @property
    def covers(self) -> bool:
        """Whether it tells of all that is in its folder: no lines do, or they are `one file each`, but for some."""
        return self.own != self.folder and (not self.has_lines or "one file each" in self.text)


def tree(text: str) -> list[Line]:
    """The lines of the tree in a README."""
    tokens = MarkdownIt().parse(text)
    at = next(i for i, token in enumerate(tokens) if token.content == HEADING)
    block = next(token.content for token in tokens[at:] if token.type == "code_block")
    lines, above = [], list[tuple[int, Line]]()
    for one in filter(str.strip, block.splitlines()):
        indent = len(one) - len(one.lstrip())
        while above and above[-1][0] >= indent:
            above.pop()
        line = Line(above[-1][1].own if above else Path(), _NAMED.findall(f"{one} "), one.strip())
        if above:
            above[-1][1].has_lines = True
        above.append((indent, line))
        lines.append(line)
    return lines


def not_there(lines: list[Line], root: Path = ROOT) -> list[str]:
    """What the tree names and is not there, whether of a line's own folder, of where it stands, or of the root."""
    wrong = []
    for line in lines:
        for name in line.named:
            found = {path for base in (line.own, line.folder, Path()) for path in root.glob(str(base / name))}
            line.found |= found
            wrong += [f"{name} in: {line.text}"] * (not found)
    return wrong


def without_a_line(lines: list[Line], root: Path = ROOT) -> list[str]:
    """Modules that no line names, and no folder's line covers."""
    assert not not_there(lines, root)
    named = {path for line in lines for path in line.found}
    covered = {root / line.own for line in lines if line.covers}
    modules = [path for name in PACKAGES for path in (root / name).rglob("*.py") if path.name != "__init__.py"]
    return [str(path.relative_to(root)) for path in modules if path not in named and not covered & {*path.parents}]


def test_what_the_tree_names_is_there() -> None:
    assert not not_there(tree((ROOT / "README.md").read_text()))


def test_every_module_has_its_line() -> None:
    assert not without_a_line(tree((ROOT / "README.md").read_text()))


def test_what_is_missing_on_either_side_is_told(tmp_path: Path) -> None:
    for name in ("engines/a.py", "engines/mock_b.py", "engines/own/c.py", "engines/own/d.py", "router/whole/e.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    shown = f"""# {HEADING}

    engines/     what runs
      mock_*.py    mocks
      own/         ours
        c.py         first
    router/      where to
      whole/       all of it; e.py: best of all
"""
    assert without_a_line(tree(shown), tmp_path) == ["engines/a.py", "engines/own/d.py"]
    assert not_there(tree(shown.replace("e.py", "f.py")), tmp_path) == [
        "f.py in: whole/       all of it; f.py: best of all"
    ]
