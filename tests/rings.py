"""Rings of tests, by marker. A file in which `-m` can select no test is not imported: imports take long."""

import re
from itertools import chain, combinations

from _pytest.mark.expression import Expression

RINGS = frozenset({"ray", "vllm", "load"})
_MARK = re.compile(r"\bpytest\.mark\.(\w+)")
_OF_THE_FILE = re.compile(r"^pytestmark = .*(?:\n(?: .*|\]))*", re.MULTILINE)


def rings_in(source: str) -> frozenset[str]:
    """The rings that a test file names."""
    return RINGS.intersection(_MARK.findall(source))


def may_select(expression: str, source: str) -> bool:
    """Whether an expression of `-m` can select a test of a file. Other names than those of rings may be anything."""
    if set(re.findall(r"\w+", expression)) - {"and", "or", "not"} - RINGS:
        return True
    whole, found = _OF_THE_FILE.search(source), rings_in(source)
    always = rings_in(whole[0]) if whole else frozenset()
    some = sorted(found - always)
    sets = chain.from_iterable(combinations(some, n) for n in range(len(some) + 1))
    return any(_selects(expression, always.union(one)) for one in sets)


def _selects(expression: str, marks: frozenset[str]) -> bool:
    return Expression.compile(expression).evaluate(lambda name, **_: name in marks)
