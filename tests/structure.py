"""Rules of structure that no linter has: `python -m tests.structure` prints each breach, and fails if there is one."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("engines", "router", "policy_training", "deploy")
MAX_ENTRIES = 20
"""Modules and folders with modules that lie directly in a folder of a package."""
MAX_FUNCTION_LINES = 60
MAX_README_LINES = 150
_BROAD = frozenset({"Exception", "BaseException"})


def breaches(root: Path = ROOT) -> Iterator[str]:
    """Each breach as `path: what is wrong`."""
    readme_lines = len((root / "README.md").read_text().splitlines())
    if readme_lines > MAX_README_LINES:
        yield f"README.md: {readme_lines} lines, at most {MAX_README_LINES} are allowed"
    for package in PACKAGES:
        for folder in (root / package, *(path for path in (root / package).rglob("*") if path.is_dir())):
            entries = [*folder.glob("[!_]*.py"), *(init.parent for init in folder.glob("*/__init__.py"))]
            if len(entries) > MAX_ENTRIES:
                where = folder.relative_to(root)
                yield f"{where}: {len(entries)} modules and folders, at most {MAX_ENTRIES} are allowed"
    for tree in (*PACKAGES, "tests"):
        for path in sorted((root / tree).rglob("*.py")):
            for line, problem in breaches_in(path.read_text()):
                yield f"{path.relative_to(root)}:{line}: {problem}"


def breaches_in(source: str) -> Iterator[tuple[int, str]]:
    """(line, what is wrong) of each long function and each broad `except` without a reason."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {length} lines, at most {MAX_FUNCTION_LINES} are allowed"
        elif isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and "#" not in lines[node.lineno - 1]:
            yield node.lineno, "a broad except: say why in a comment on its line, or name the errors"


def _is_broad(caught: ast.expr | None) -> bool:
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(name is None or (isinstance(name, ast.Name) and name.id in _BROAD) for name in names)


def main() -> None:
    found = list(breaches())
    print("\n".join(found) if found else "structure: no breach")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
