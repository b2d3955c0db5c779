"""The page of evidence says what the results say, of all of them."""

import pytest

from tests.bench.evidence import PAGE, Evidence, page, specification
from tests.bench.figure_references import RESULTS, ROOT, figure, results

_NO_FIGURES = {"acceptance_rows.json"}  # what the simulator draws requests from


@pytest.fixture
def evidence() -> Evidence:
    return specification()


def test_the_page_is_up_to_date(evidence: Evidence) -> None:
    assert PAGE.read_text() == page(evidence), "python -m tests.bench.evidence"


def test_every_result_and_every_picture_is_told_of(evidence: Evidence) -> None:
    results = [name for section in evidence.sections for name in section.made_by]
    assert sorted(results) == sorted({path.name for path in RESULTS.glob("*.json")} - _NO_FIGURES)
    pictures = {name for section in evidence.sections for name in section.pictures}
    elsewhere = {"demo.png"}  # of an earlier fleet
    assert {path.name for path in RESULTS.glob("*.png")} - elsewhere == pictures


def test_every_figure_is_of_a_result_whose_command_is_given(evidence: Evidence) -> None:
    for section in evidence.sections:
        assert {row.of for row in section.rows} <= set(section.made_by), section.title


def test_the_first_screen_says_whether_routing_loses_on_public_prompts() -> None:
    if "public_prompts.json" not in results():
        pytest.skip("no public_prompts.json")
    first_screen = (ROOT / "README.md").read_text().partition("## Two commands")[0]
    assert "public_prompts.json#routed_vs_best_fixed" in first_screen
    assert "public_prompts.json#routed_vs_plain" in first_screen
    assert ("routing loses today" in first_screen) == (
        figure("public_prompts.json", "routed_vs_best_fixed")["value"] < 1
    )
