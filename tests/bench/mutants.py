"""What no test notices: `python -m tests.bench.mutants` breaks a sample of lines one at a time, and runs their tests.

Cosmic Ray makes the mutants; those of annotations and docstrings are left out. Each is tested in a copy of the tree by
the tests of its module (`MODULES`), the narrowest first. The sample is drawn with a seed, the same number from each
module, beside the mutants of `mutants_by_hand.yaml`, of behaviours that had no test once. `--minutes` bounds a run, and
the next one continues where it stopped: results are kept in `runs/mutants.jsonl`.
`equivalent_mutants.yaml` names survivors that change nothing. mutants.json has `score`, the share of the others that
tests noticed, and the survivors by name.
"""

import argparse
import ast
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from draftpick.deploy.console import out

ROOT = Path(__file__).parents[2]
RESULTS, KEPT = Path(__file__).parent / "results" / "mutants.json", ROOT / "runs" / "mutants.jsonl"
EQUIVALENT = Path(__file__).parent / "equivalent_mutants.yaml"
BY_HAND = Path(__file__).parent / "mutants_by_hand.yaml"
_REQUEST, _ONLINE = "tests/router/request/", "tests/router/online/"
_RETRAINING = "tests/policy_training/retraining/"
MODULES: dict[str, tuple[str, ...]] = {
    "router/request/meter.py": (f"{_REQUEST}test_meter.py", f"{_REQUEST}test_event_stream.py"),
    "router/request/relay.py": (f"{_REQUEST}test_streams.py", f"{_REQUEST}test_faults.py"),
    "router/request/dispatcher.py": (
        f"{_REQUEST}test_dispatcher.py",
        f"{_REQUEST}test_learning.py",
        "tests/router/http/test_security.py",
        f"{_REQUEST}test_faults.py",
    ),
    "router/request/decision.py": (
        f"{_REQUEST}test_dispatcher.py",
        f"{_REQUEST}test_learning.py",
        f"{_REQUEST}test_faults.py",
    ),
    "router/request/learning.py": (f"{_REQUEST}test_learning.py",),
    "router/request/verdict.py": (f"{_REQUEST}test_verdict.py",),
    "router/request/prefix_index.py": (f"{_REQUEST}test_prefix_index.py",),
    "router/request/attempt_queue.py": (f"{_REQUEST}test_attempt_queue.py",),
    "router/request/admission.py": (f"{_REQUEST}test_admission.py", f"{_REQUEST}test_overload.py"),
    "router/http/auth.py": ("tests/router/http/test_auth.py", "tests/router/http/test_security.py"),
    "engines/circuit_breaker.py": ("tests/engines/test_circuit_breaker.py",),
    "engines/replicas.py": ("tests/engines/test_replicas.py",),
    "router/online/residual_correction.py": (
        f"{_ONLINE}test_residual_correction.py",
        f"{_ONLINE}test_online_learner.py",
    ),
    "router/online/online_learner.py": (f"{_ONLINE}test_online_learner.py", f"{_REQUEST}test_learning.py"),
    "router/online/key_shares.py": (f"{_ONLINE}test_key_shares.py",),
    "router/online/quarantine.py": (f"{_ONLINE}test_quarantine.py",),
    "router/online/drift.py": (f"{_ONLINE}test_drift.py",),
    "engines/drafters/draft_length.py": ("tests/engines/drafters/test_drafters.py",),
    "router/records.py": ("tests/router/test_records.py",),
    "policy_training/data/from_records.py": ("tests/policy_training/data/test_from_records.py",),
    "policy_training/data/key_weights.py": ("tests/policy_training/data/test_key_weights.py",),
    "policy_training/evaluation/ope.py": ("tests/policy_training/evaluation/test_ope.py",),
    "policy_training/retraining/gates/offline.py": (f"{_RETRAINING}gates",),
    "policy_training/retraining/canary.py": (f"{_RETRAINING}test_canary.py", f"{_RETRAINING}test_canary_data.py"),
    "policy_training/retraining/canary_data.py": (f"{_RETRAINING}test_canary_data.py", f"{_RETRAINING}test_canary.py"),
    "policy_training/retraining/controller.py": (f"{_RETRAINING}test_pipeline.py",),
}
"""Each module with the tests of its behaviour."""
_TIMEOUT_S = 120.0
_TRIVIAL = re.compile(
    r"NoOp|Variable|Invert|RemoveDecorator"
    r"|BinaryOperator_(?!(Add|Sub|Mul|Div)_(Add|Sub|Mul|Div)$)"
    r"|ComparisonOperator_((?!Is)\w+_(Is|IsNot)|(Is|IsNot)_(?!Is).*)$"
)
"""Operators that change nothing, or whose mutants fail whatever tests look at."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One broken line. `occurrence`: which place of the operator in its module; `before`, `after`: the line.

    `operator`: of Cosmic Ray; empty: made by hand.
    """

    module: str
    operator: str
    occurrence: int
    line: int
    before: str
    after: str

    @property
    def name(self) -> str:
        """Module, line and change, as in `equivalent_mutants.yaml`."""
        return f"{self.module}: {self.before} -> {self.after}"


def mutants(module: str, number: int, rng: random.Random) -> list[Mutant]:
    """Randomly drawn mutants of a module."""
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code

    source = (ROOT / module).read_text()
    skipped, nodes = set(_uninteresting(ast.parse(source))), list(ast_nodes(get_ast(source)))
    operators = {name: plugins.get_operator(name) for name in plugins.operator_names()}
    places = [
        (name, occurrence, line)
        for name, made in operators.items()
        if not made.arguments() and not _TRIVIAL.search(name)
        for occurrence, (line, _) in enumerate(at for node in nodes for at, _ in made().mutation_positions(node))
        if line not in skipped
    ]
    found: list[Mutant] = []
    for name, occurrence, line in rng.sample(places, len(places)):
        if len(found) == number:
            break
        broken = mutate_code(source, operators[name](), occurrence) or source
        pairs = zip(source.splitlines(), broken.splitlines(), strict=False)
        if changed := next((pair for pair in pairs if pair[0] != pair[1]), None):
            before, after = (text.strip() for text in changed)
            found.append(Mutant(module, name, occurrence, line, before, after))
    return found


def _uninteresting(tree: ast.Module) -> Iterator[int]:
    """Lines of annotations, imports and definitions of functions: no behaviour of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from range(min([node.lineno, *(d.lineno for d in node.decorator_list)]), node.body[0].lineno)
        elif isinstance(node, ast.AnnAssign):
            yield from range(node.annotation.lineno, (node.annotation.end_lineno or 0) + 1)
        elif isinstance(node, ast.Import | ast.ImportFrom) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ):
            yield from range(node.lineno, (node.end_lineno or 0) + 1)


def by_hand() -> list[Mutant]:
    """The mutants of `mutants_by_hand.yaml`. Raises `LookupError` for a line that is not there once."""
    found = []
    for row in yaml.safe_load(BY_HAND.read_text()):
        module, before, after = row["module"], row["before"], row["after"]
        source = (ROOT / module).read_text()
        if source.count(before) != 1:
            raise LookupError(f"{BY_HAND.name}: {module} has {source.count(before)} times: {before}")
        found.append(Mutant(module, "", 0, source[: source.index(before)].count("\n") + 1, before, after))
    return found


def sample(per_module: int, seed: int, only: Sequence[str] = ()) -> list[Mutant]:
    """The mutants to test. Drawing takes a while, so they are kept until their module changes."""
    file = KEPT.with_name("mutants_drawn.json")
    drawn: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    chosen: list[Mutant] = []
    for module in MODULES:
        if only and not any(word in module for word in only):
            continue
        digest = hashlib.sha256((ROOT / module).read_bytes()).hexdigest()[:12]
        name = f"{module}|{per_module}|{seed}|{digest}"
        if name not in drawn:
            drawn[name] = [asdict(m) for m in mutants(module, per_module, random.Random(f"{seed}|{module}"))]
            file.write_text(json.dumps(drawn))
        chosen += [Mutant(**fields) for fields in drawn[name]]
    return [*(one for one in by_hand() if not only or any(word in one.module for word in only)), *chosen]


def survives(copy: Path, mutant: Mutant) -> bool:
    """True if the tests of a mutant's module pass with it. `copy`: a copy of the tree."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    file = copy / mutant.module
    whole = file.read_text()
    if mutant.operator:
        file.write_text(mutate_code(whole, plugins.get_operator(mutant.operator)(), mutant.occurrence))
    else:
        file.write_text(whole.replace(mutant.before, mutant.after))
    try:
        return run_tests(copy, MODULES[mutant.module]) == 0
    finally:
        file.write_text(whole)


def run_tests(copy: Path, tests: Sequence[str]) -> int:
    """Exit code of pytest in a forked process, which has other packages loaded already; 1 if it hangs."""
    process = multiprocessing.get_context("fork").Process(target=_pytest, args=(copy, tuple(tests)))
    process.start()
    process.join(_TIMEOUT_S)
    if process.is_alive():
        process.kill()
        process.join()
        return 1
    return process.exitcode or 0


def _pytest(copy: Path, tests: Sequence[str]) -> None:
    import pytest

    os.chdir(copy)
    sys.path.insert(0, str(copy))
    for name in [name for name in sys.modules if name.split(".")[0] in ("draftpick", "tests")]:
        del sys.modules[name]
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    options = [
        "-x",
        "-q",
        "-n0",
        "-p",
        "no:cacheprovider",
        "--timeout",
        "60",
        "-m",
        "not ray and not vllm and not load",
    ]
    preloaded = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    os._exit(int(pytest.main([*options, *preloaded, *tests])))


def _preload() -> None:
    """Import the packages that tests need, once for all."""
    import httpx  # noqa: F401
    import numpy.testing  # noqa: F401
    import opentelemetry.sdk.trace  # noqa: F401
    import prometheus_client  # noqa: F401
    import starlette.applications  # noqa: F401
    import uvicorn  # noqa: F401


def _copy_tree(to: Path) -> None:
    ignored = shutil.ignore_patterns("results", "__pycache__", "node_modules", "*.pt", "*.onnx")
    for name in ("router", "engines", "policy_training", "deploy", "tests", "docs"):
        shutil.copytree(ROOT / name, to / name, ignore=ignored, symlinks=True)
    shutil.copytree(ROOT / "draftpick", to / "draftpick", symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", to)


def _state_of(module: str) -> str:
    """A digest of a module and its tests."""
    files = [ROOT / module]
    for tests in MODULES[module]:
        path = ROOT / tests
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _read_kept() -> dict[tuple[str, str], bool]:
    """Whether a mutant survived, by name and state of its module and tests."""
    if not KEPT.exists():
        return {}
    rows = [json.loads(line) for line in KEPT.read_text().splitlines()]
    return {(row["name"], row["state"]): row["survived"] for row in rows}


def _keep(name: str, state: str, survived: bool, kept: dict[tuple[str, str], bool]) -> None:
    kept[name, state] = survived
    with KEPT.open("a") as file:
        file.write(json.dumps({"name": name, "state": state, "survived": survived}) + "\n")


def _is_sound(copy: Path, module: str, state: str, kept: dict[tuple[str, str], bool]) -> bool:
    """True if the tests of a module pass without a mutant."""
    if (module, state) not in kept and run_tests(copy, MODULES[module]) == 0:
        _keep(module, state, True, kept)
    return (module, state) in kept


def report(chosen: Sequence[Mutant], kept: dict[tuple[str, str], bool], per_module: int, seed: int) -> dict[str, Any]:
    """The content of mutants.json. A mutant that a later test or change has not seen counts as it last did."""
    last = {name: survived for (name, _), survived in kept.items()}
    tested = [one for one in chosen if one.name in last]
    equivalent = yaml.safe_load(EQUIVALENT.read_text()) or {} if EQUIVALENT.exists() else {}
    survivors = [one for one in tested if last[one.name]]
    open_ones = [one for one in survivors if one.name not in equivalent]
    judged = len(tested) - (len(survivors) - len(open_ones))
    by_module = {m: [one for one in tested if one.module == m] for m in MODULES}
    return {
        "score": round(1 - len(open_ones) / judged, 3) if judged else 0.0,
        "sampled": len(chosen),
        "tested": len(tested),
        "noticed": len(tested) - len(survivors),
        "per_module": per_module,
        "seed": seed,
        "survivors": [asdict(one) for one in open_ones],
        "equivalent": {one.name: equivalent[one.name] for one in survivors if one.name in equivalent},
        "modules": {m: [sum(not last[one.name] for one in rows), len(rows)] for m, rows in by_module.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-module", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60.0, help="a run goes on where the one before stopped")
    parser.add_argument("--only", default="", help="modules with these words in their path, with commas")
    parser.add_argument("--survivors", action="store_true", help="test the survivors again, whatever has changed")
    args = parser.parse_args()
    KEPT.parent.mkdir(exist_ok=True)
    kept = _read_kept()
    chosen = sample(args.per_module, args.seed, [word for word in args.only.split(",") if word])
    last = {name: survived for (name, _), survived in kept.items()}
    states = {module: _state_of(module) for module in MODULES}
    waiting = [m for m in chosen if m.name not in last]
    if args.survivors:
        waiting = [m for m in chosen if last.get(m.name) and (m.name, states[m.module]) not in kept]
    until = time.monotonic() + 60 * args.minutes
    _preload()
    with tempfile.TemporaryDirectory(prefix="draftpick-mutants-") as scratch:
        copy = Path(scratch)
        _copy_tree(copy)
        for mutant in waiting:
            if time.monotonic() > until:
                break
            if not _is_sound(copy, mutant.module, states[mutant.module], kept):
                out.print(f"{mutant.module}: its tests fail without a mutant", highlight=False)
                continue
            survived = survives(copy, mutant)
            _keep(mutant.name, states[mutant.module], survived, kept)
            out.print(f"{'SURVIVED' if survived else 'noticed '} {mutant.line:4d} {mutant.name}", highlight=False)
    if not args.only:
        content = report(chosen, kept, args.per_module, args.seed)
        RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
