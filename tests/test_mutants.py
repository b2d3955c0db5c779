"""The mutants: their lines and tests are there, a score says what it is of, and its file is consistent."""

import json
from collections.abc import Iterable
from types import FunctionType
from typing import Any

import pytest

from tests.bench.mutant_tests import _function_at, patch, recording
from tests.bench.mutants import BAR, BY_HAND, MODULES, RESULTS, ROOT, Mutant, Results, by_hand, reasons, score, score_of

SAMPLES = json.loads(RESULTS.read_text())["samples"]


def test_modules_their_tests_and_the_lines_to_break_are_there() -> None:
    for module, tests in MODULES.items():
        assert all((ROOT / path).exists() for path in (module, *tests)), module
    assert {mutant.module for mutant in by_hand()} <= set(MODULES)
    assert len(by_hand()) == BY_HAND.read_text().count("breaks:")


def test_survivors_that_were_looked_at_have_a_line_and_a_reason() -> None:
    for name, reason in [pair for rows in reasons().values() for pair in rows.items()]:
        module, change = name.split(": ", 1)
        source, parts = (ROOT / module).read_text(), change.split(" -> ")
        assert any(" -> ".join(parts[:i]) in source for i in range(1, len(parts))), name
        assert len(reason) > 10, name


def test_a_score_is_the_share_of_mutants_that_tests_notice() -> None:
    chosen = [
        Mutant("router/records.py", "", 0, i, f"line {i}", "pass") for i in range(6)
    ]  # the last one was not tested
    results = Results({}, {}, {})
    for i, (at_first, survives) in enumerate(
        [(True, True), (True, False), (False, False), (True, True), (False, False)]
    ):
        results.first[chosen[i].name], results.last[chosen[i].name] = at_first, survives
    why = {"equivalent": {chosen[3].name: "changes nothing"}, "accepted": {chosen[0].name: "a constant"}}
    found = score(chosen, results, why)
    assert (found["score_at_first"], found["score"]) == (0.5, 0.75)
    assert (found["sampled"], found["tested"], found["noticed"]) == (6, 5, 3)
    assert found["survivors"] == {chosen[0].name: "a constant"}
    assert found["equivalent"] == {chosen[3].name: "changes nothing"}
    assert found["modules"]["router/records.py"] == [3, 4]


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_file_of_scores_is_consistent(sample: str) -> None:
    found = SAMPLES[sample]
    judged = found["tested"] - len(found["equivalent"])
    assert found["score"] == round(found["noticed"] / judged, 3) >= found["score_at_first"]
    assert found["noticed"] + len(found["survivors"]) == judged
    assert total(found["modules"].values()) == [found["noticed"], judged]
    assert found["tested"] <= found["sampled"]
    assert "not looked at" not in found["survivors"].values()


def test_the_score_is_of_the_last_sample_at_first_once_it_is_complete() -> None:
    found = json.loads(RESULTS.read_text())
    assert (found["score"], found["bar"]) == (score_of(SAMPLES), BAR)
    one, other = ({"score_at_first": share, "sampled": 9, "tested": 9} for share in (0.5, 0.75))
    assert score_of({"seed 1": one, "seed 2": other, "by_hand": one}) == 0.75
    assert score_of({"seed 1": one, "seed 2": {**other, "tested": 8}}) is None


SOURCE = """
LIMIT = 3

def double(x):
    return [2 * one for one in x]

class Box:
    @property
    def size(self):
        def inner():
            return LIMIT
        return inner()
"""


def test_a_changed_function_takes_the_place_of_the_old_one() -> None:
    module: dict[str, Any] = {}
    exec(compile(SOURCE, "module.py", "exec"), module)
    double, box = module["double"], module["Box"]()
    functions: list[FunctionType] = [double, module["Box"].size.fget]
    patch(
        functions, compile(SOURCE.replace("2 *", "3 *").replace("return LIMIT", "return -LIMIT"), "module.py", "exec")
    )
    assert (double([1, 2]), box.size) == ([3, 6], -3)
    entered = list[str]()
    module["_enter_of_mutants"] = entered.append
    patch(functions, compile(recording(SOURCE), "module.py", "exec"))
    assert (double([1, 2]), box.size, entered) == ([2, 4], 3, ["double", "Box.size"])
    assert [_function_at(SOURCE, line) for line in (2, 4, 5, 9, 11, 12)] == [
        *(None, None, "double", None),
        *("Box.size", "Box.size"),
    ]


def total(pairs: Iterable[list[int]]) -> list[int]:
    return [sum(column) for column in zip(*pairs, strict=True)]
