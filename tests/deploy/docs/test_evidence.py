"""The page of evidence says what the results say, of all of them."""

import json

import pytest

from tests.bench.evidence import PAGE, Evidence, page, specification
from tests.bench.figure_references import RESULTS, ROOT, figure

_NO_FIGURES = {"acceptance_rows.json"}  # what the simulator draws requests from


@pytest.fixture
def evidence() -> Evidence:
    return specification()


def test_the_page_is_up_to_date(evidence: Evidence) -> None:
    assert PAGE.read_text() == page(evidence), "python -m tests.bench.evidence"


def test_every_result_and_every_picture_is_told_of(evidence: Evidence) -> None:
    results = {name for section in evidence.sections for name in section.made_by}
    assert sorted(results) == sorted({path.name for path in RESULTS.glob("*.json")} - _NO_FIGURES)
    pictures = {name for section in evidence.sections for name in section.pictures}
    elsewhere = {"demo.png"}  # of an earlier fleet
    assert {path.name for path in RESULTS.glob("*.png")} - elsewhere == pictures


def test_every_figure_is_of_a_result_whose_command_is_given(evidence: Evidence) -> None:
    for section in evidence.sections:
        assert {row.of for row in section.rows} <= set(section.made_by), section.title


def test_the_first_screen_says_whether_routing_wins_on_real_text() -> None:
    first_screen = (ROOT / "README.md").read_text().partition("## Two commands")[0]
    names = {key.partition("/")[0] for key in json.loads((RESULTS / "real_text.json").read_text())["sets"]}
    sets = [figure("real_text.json", f"{name}/routed_vs_best_fixed") for name in names]
    for name in names:
        assert f"real_text.json#{name}/routed_vs_best_fixed" in first_screen
        assert f"real_text.json#{name}/routed_vs_plain" in first_screen
    if min(one["value"] for one in sets) < 1:
        verdict = "routing loses today"
    elif min(one["low"] for one in sets) < 1:
        verdict = "routing is not proved to win"
    else:
        verdict = "routing wins"
    assert verdict in first_screen
