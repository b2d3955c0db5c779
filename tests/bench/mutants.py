"""What no test notices: `python -m tests.bench.mutants` breaks a sample of lines one at a time, and runs their tests.

Cosmic Ray makes the mutants; those of annotations and docstrings are left out. Each is tested in a copy of the tree by
those tests of its module (`MODULES`) that enter the changed function, the fastest first (`tests.bench.mutant_tests`). A
sample is drawn with a seed, the same number from each module, and holds no mutant of another sample that was drawn
here. Beside the samples, the mutants of `mutants_by_hand.yaml` are tested, of behaviours that had no test once.
`--minutes` bounds a run, and the next one continues where it stopped: results are kept in `runs/mutants.jsonl`.

A new score takes a seed that no sample has: `python -m tests.bench.mutants --seed 4 --per-module 3`, then a reason for
each survivor in `surviving_mutants.yaml`, or a test and `--survivors` with the same seed.

`surviving_mutants.yaml` names survivors with the reason: those that change nothing, and those that no test is for.
mutants.json has a score of every sample, the share of its mutants that tests noticed without those that change nothing:
`score_at_first` with the tests of the time when a mutant was first tested, `score` with those of today. Tests that are
written for the survivors of a sample flatter its `score`; the `score` of the file is the last sample's first one, null
until the sample is complete.
"""

import argparse
import ast
import hashlib
import json
import random
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from draftpick.deploy.console import out
from draftpick.deploy.workflows.results import write as write_result
from draftpick.policy_training.evaluation.evaluate import Interval
from tests.bench.mutant_tests import Tests, copy_tree, preload

ROOT = Path(__file__).parents[2]
RESULTS, KEPT = Path(__file__).parent / "results" / "mutants.json", ROOT / "runs" / "mutants.jsonl"
SURVIVING = Path(__file__).parent / "surviving_mutants.yaml"
BY_HAND = Path(__file__).parent / "mutants_by_hand.yaml"
BAR = 0.9
_REQUEST, _ONLINE = "tests/router/request/", "tests/router/online/"
_DATA, _RETRAINING = "tests/policy_training/data/", "tests/policy_training/retraining/"
MODULES: dict[str, tuple[str, ...]] = {
    "router/request/meter.py": (f"{_REQUEST}test_meter.py", f"{_REQUEST}test_event_stream.py"),
    "router/request/relay.py": (f"{_REQUEST}test_relay.py", f"{_REQUEST}test_streams.py"),
    "router/request/dispatcher.py": (
        *(f"{_REQUEST}test_dispatcher_rules.py", f"{_REQUEST}test_dispatcher.py", f"{_REQUEST}test_faults.py"),
        *(f"{_REQUEST}test_stream_resume.py", f"{_REQUEST}test_stored_responses.py", f"{_REQUEST}test_shadow.py"),
    ),
    "router/request/timeouts.py": (f"{_REQUEST}test_timeouts.py",),
    "router/request/decision.py": (*(f"{_REQUEST}test_decision.py", f"{_REQUEST}test_dispatcher.py"),),
    "router/request/learning.py": (f"{_REQUEST}test_learning.py",),
    "router/request/verdict.py": (f"{_REQUEST}test_verdict.py", f"{_REQUEST}test_stream_resume.py"),
    "router/request/prefix_index.py": (f"{_REQUEST}test_prefix_index.py",),
    "router/request/attempt_queue.py": (f"{_REQUEST}test_attempt_queue.py",),
    "router/request/admission.py": (f"{_REQUEST}test_admission.py",),
    "router/http/auth.py": ("tests/router/http/test_auth.py", "tests/router/http/test_security.py"),
    "engines/circuit_breaker.py": ("tests/engines/test_circuit_breaker.py",),
    "engines/replicas.py": ("tests/engines/test_replicas.py", "tests/router/load/test_placement.py"),
    "router/online/residual_correction.py": (f"{_ONLINE}test_residual_correction.py",),
    "router/online/online_learner.py": (f"{_ONLINE}test_online_learner.py", f"{_ONLINE}test_pool_learning.py"),
    "router/online/key_shares.py": (f"{_ONLINE}test_key_shares.py",),
    "router/online/quarantine.py": (f"{_ONLINE}test_quarantine.py",),
    "router/online/drift.py": (f"{_ONLINE}test_drift.py",),
    "engines/drafters/draft_length.py": ("tests/engines/drafters/test_draft_length.py",),
    "router/records.py": ("tests/router/test_records.py",),
    "policy_training/data/from_records.py": (f"{_DATA}test_from_records.py", f"{_DATA}test_pool_records.py"),
    "policy_training/data/key_weights.py": (f"{_DATA}test_key_weights.py",),
    "policy_training/evaluation/ope.py": ("tests/policy_training/evaluation/test_ope.py",),
    "policy_training/retraining/gates/offline.py": (f"{_RETRAINING}gates/test_offline.py",),
    "policy_training/retraining/canary.py": (f"{_RETRAINING}test_canary.py", f"{_RETRAINING}test_canary_data.py"),
    "policy_training/retraining/canary_data.py": (f"{_RETRAINING}test_canary_data.py", f"{_RETRAINING}test_canary.py"),
    "policy_training/retraining/controller.py": (f"{_RETRAINING}test_controller.py",),
}
"""Each module with the tests of its behaviour."""
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
        """Module, line and change, as in `surviving_mutants.yaml`."""
        return f"{self.module}: {self.before} -> {self.after}"


def mutants(module: str, number: int, rng: random.Random, known: Collection[str] = ()) -> list[Mutant]:
    """Randomly drawn mutants of a module, but for those with `known` names."""
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
    found: dict[str, Mutant] = {}
    for name, occurrence, line in rng.sample(places, len(places)):
        if len(found) == number:
            break
        changed = mutate_code(source, operators[name](), occurrence) or source
        pairs = zip(source.splitlines(), changed.splitlines(), strict=False)
        if pair := next((pair for pair in pairs if pair[0] != pair[1]), None):
            before, after = (text.strip() for text in pair)
            one = Mutant(module, name, occurrence, line, before, after)
            if one.name not in known:
                found[one.name] = one
    return list(found.values())


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
    chosen: list[list[Mutant]] = []
    for module in MODULES:
        if only and not any(word in module for word in only):
            continue
        digest = hashlib.sha256((ROOT / module).read_bytes()).hexdigest()[:12]
        name = f"{module}|{per_module}|{seed}|{digest}"
        if name not in drawn:
            others = {Mutant(**m).name for key, rows in drawn.items() if key.split("|")[2] != str(seed) for m in rows}
            made = mutants(module, per_module, random.Random(f"{seed}|{module}"), others)
            drawn[name] = [asdict(one) for one in made]
            file.write_text(json.dumps(drawn))
        chosen.append([Mutant(**fields) for fields in drawn[name]])
    return [one for some in chosen for one in some]


def broken(mutant: Mutant) -> str:
    """The source of a mutant's module with it."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    whole = (ROOT / mutant.module).read_text()
    if not mutant.operator:
        return whole.replace(mutant.before, mutant.after)
    return str(mutate_code(whole, plugins.get_operator(mutant.operator)(), mutant.occurrence))


@dataclass(slots=True)
class Results:
    """What was found so far: of each mutant at first and at last, by name, whether it survived."""

    first: dict[str, bool]
    last: dict[str, bool]
    states: dict[str, str]
    """State of module and tests (`_state_of`) at the last test of a mutant."""

    @classmethod
    def read(cls) -> "Results":
        found = cls({}, {}, {})
        for line in KEPT.read_text().splitlines() if KEPT.exists() else ():
            row = json.loads(line)
            found._add(row["name"], row["survived"], row["state"])
        return found

    def keep(self, name: str, survived: bool, state: str, by: str) -> None:
        """`by`: the test that noticed it."""
        self._add(name, survived, state)
        with KEPT.open("a") as file:
            file.write(json.dumps({"name": name, "state": state, "survived": survived, "by": by}) + "\n")

    def _add(self, name: str, survived: bool, state: str) -> None:
        self.first.setdefault(name, survived)
        self.last[name], self.states[name] = survived, state


def _state_of(module: str) -> str:
    """A digest of a module and its tests."""
    files = [ROOT / module]
    for tests in MODULES[module]:
        path = ROOT / tests
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:12]


def reasons() -> dict[str, dict[str, str]]:
    """`surviving_mutants.yaml`: names with reasons, of mutants that change nothing and of the others."""
    return {kind: rows or {} for kind, rows in yaml.safe_load(SURVIVING.read_text()).items()}


def score(chosen: Sequence[Mutant], results: Results, why: dict[str, dict[str, str]]) -> dict[str, Any]:
    """The entry of a sample in mutants.json: of its `sampled` mutants, those that were `tested`; `modules`: how many of
    each were noticed, and how many there were."""
    tested = [one for one in chosen if one.name in results.last]
    judged = [one for one in tested if one.name not in why["equivalent"]]
    survivors = [one.name for one in judged if results.last[one.name]]
    by_module = {module: [one.name for one in judged if one.module == module] for module in MODULES}
    return {
        "score_at_first": _share([not results.first[one.name] for one in judged]),
        "score": _share([not results.last[one.name] for one in judged]),
        "sampled": len(chosen),
        "tested": len(tested),
        "noticed": len(judged) - len(survivors),
        "survivors": {name: why["accepted"].get(name, "not looked at") for name in survivors},
        "equivalent": {one.name: why["equivalent"][one.name] for one in tested if one.name in why["equivalent"]},
        "modules": {m: [sum(not results.last[n] for n in names), len(names)] for m, names in by_module.items()},
    }


def score_of(samples: Mapping[str, dict[str, Any]]) -> float | None:
    """The score at first of the last sample; None while some of its mutants wait to be tested."""
    last = samples[max(samples)]  # `seed 2` comes after `seed 1` and `by_hand`
    return float(last["score_at_first"]) if last["tested"] == last["sampled"] else None


def _share(found: Sequence[bool]) -> float:
    return round(sum(found) / len(found), 3) if found else 0.0


def write(entries: dict[str, dict[str, Any]]) -> None:
    """Put entries of samples, and of the mutants by hand, into mutants.json; not those of which none was tested."""
    samples = json.loads(RESULTS.read_text())["samples"] if RESULTS.exists() else {}
    samples |= {name: entry for name, entry in entries.items() if entry["tested"]}
    shares = {
        f"{name.replace(' ', '_')}/{key}": Interval(entry[key], entry[key], entry[key])
        for name, entry in samples.items()
        for key in ("score", "score_at_first", "tested", "sampled")
    }
    for name, entry in samples.items():  # had those that change nothing counted as not noticed
        share = entry["score_at_first"] * (1 - len(entry["equivalent"]) / entry["tested"])
        shares[f"{name.replace(' ', '_')}/share_of_all_at_first"] = Interval(share, share, share)
    tested = sum(entry["tested"] for entry in samples.values())
    write_result(RESULTS, tested, shares, bar=BAR, score=score_of(samples), samples=samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-module", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60.0, help="a run goes on where the one before stopped")
    parser.add_argument("--only", default="", help="modules with these words in their path, with commas")
    parser.add_argument("--survivors", action="store_true", help="test survivors again whose module or tests changed")
    args = parser.parse_args()
    KEPT.parent.mkdir(exist_ok=True)
    results = Results.read()
    words = [word for word in args.only.split(",") if word]
    chosen = sample(args.per_module, args.seed, words)
    hand = [one for one in by_hand() if not words or any(word in one.module for word in words)]
    states = {module: _state_of(module) for module in MODULES}
    waiting = [one for one in (*hand, *chosen) if one.name not in results.last]
    if args.survivors:
        everything = [one for one in (*hand, *chosen) if results.last.get(one.name)]
        waiting = [one for one in everything if results.states[one.name] != states[one.module]]
    _test(waiting, results, states, time.monotonic() + 60 * args.minutes)
    if not words:
        why = reasons()
        write({"by_hand": score(hand, results, why), f"seed {args.seed}": score(chosen, results, why)})


def _test(waiting: Sequence[Mutant], results: Results, states: dict[str, str], until: float) -> None:
    """Test mutants until a time (`time.monotonic()`)."""
    preload()
    copy = KEPT.with_name("mutants_tree")
    copy_tree(ROOT, copy)
    tests, left = Tests(copy, KEPT.with_name("mutants_tests.json")), len(waiting)
    for module, mutants_of in groupby(sorted(waiting, key=lambda one: one.module), key=lambda one: one.module):
        tests.begin(module, MODULES[module], states[module])
        for mutant in mutants_of:
            if time.monotonic() > until:
                _print(f"{left} are left")
                tests.close()
                return
            began = time.monotonic()
            survived = not tests.notice(broken(mutant), mutant.line)
            results.keep(mutant.name, survived, states[module], tests.fails)
            how = "SURVIVED" if survived else f"noticed by {tests.fails.rpartition(':')[2]}:"
            _print(f"{time.monotonic() - began:.1f} s: {how} {mutant.line} {mutant.name}")
            tests.write()
            left -= 1
    tests.close()


def _print(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
