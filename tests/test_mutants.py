"""The list of mutants cannot rot: its lines and tests are there."""

from tests.bench.mutants import MODULES, ROOT, by_hand, report


def test_modules_their_tests_and_the_lines_to_break_are_there() -> None:
    for module, tests in MODULES.items():
        assert all((ROOT / path).exists() for path in (module, *tests)), module
    assert {mutant.module for mutant in by_hand()} <= set(MODULES)


def test_the_score_is_the_share_of_mutants_that_tests_notice() -> None:
    chosen = by_hand()[:4]
    kept = {(one.name, "state"): number == 0 for number, one in enumerate(chosen[:3])}
    found = report(chosen, kept, 0, 1)
    assert (found["score"], found["sampled"], found["tested"], found["noticed"]) == (0.667, 4, 3, 2)
    assert [one["before"] for one in found["survivors"]] == [chosen[0].before]
