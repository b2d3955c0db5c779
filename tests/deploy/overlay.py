"""The tree with the code blocks of a text laid over it: whole files, and changes of files."""

import os
from pathlib import Path

from tests.deploy.docs.code_blocks import Block

ROOT = Path(__file__).parents[2]
_PACKAGES = ("engines", "router", "policy_training", "deploy")
_COPIED = (*_PACKAGES, "draftpick", "docs", "tests", "pyproject.toml")


def lay_over(named: list[Block], folder: Path) -> list[Path]:
    """Lay blocks, whose names are paths, over a copy of the tree in `folder`; returns the files, relative to it.

    What is not changed is a link to the tree.
    """
    folder.mkdir(exist_ok=True)
    for name in _COPIED:
        _link(ROOT / name, folder / name)
    files = []
    for block in named:
        assert block.name is not None
        path = folder / block.name
        text = changed(path.read_text(), block) if block.language == "diff" else block.text
        path.unlink(missing_ok=True)
        path.write_text(text)
        files.append(Path(block.name))
    return files


def changed_files(folder: Path) -> list[Path]:
    """Files of the product that such a copy has and the tree has not, relative to it."""
    paths = (path for package in _PACKAGES for path in (folder / package).rglob("*"))
    return sorted(path.relative_to(folder) for path in paths if path.is_file() and not path.is_symlink())


def changed(text: str, block: Block) -> str:
    """A file after a change, whose parts `@@` tells apart. Each part's old lines must be there, exactly once."""
    for part in block.text.split("@@\n"):
        lines = part.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        assert text.count(old) == 1, f"line {block.line}: {block.name} does not hold once:\n{old}"
        text = text.replace(old, new)
    return text


def _link(path: Path, to: Path) -> None:
    """A file as a link, a folder as a folder of such; a link to a folder as the same link."""
    if path.is_file():
        to.symlink_to(path)
        return
    for at, folders, names in os.walk(path):
        inner = to / Path(at).relative_to(path)
        if inner.name != "__pycache__":
            inner.mkdir(parents=True)
            for name in names:
                (inner / name).symlink_to(Path(at) / name)
            for name in folders:
                if (Path(at) / name).is_symlink():
                    (inner / name).symlink_to((Path(at) / name).readlink())
