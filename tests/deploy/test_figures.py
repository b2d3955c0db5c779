"""Figures in texts: each measurement is read from its result, and each bracket says what it is."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.bench import figure_references
from tests.bench.evidence import has_bracket, page, specification
from tests.bench.figure_references import (
    ROOT,
    TYPED,
    documents,
    exceptions,
    figure,
    figures_with_brackets,
    fill_in,
    format_figure,
    reference,
    render_template,
    typed_numbers,
)

each_document = pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
RESULT = {
    "n": 60,
    "errors": {"broken: gone, kill": 6},
    "slower": ["a", "b"],
    "best": "suffix",
    "figures": {
        "gain/2/even": {"value": 1.1, "low": 1.0, "high": 1.2},
        "gain/4/even": {"value": 0.9, "low": 0.85, "high": 0.95},
        "gain/4/even/low": {"value": 0.5, "low": 0.5, "high": 0.5},
        "lost": {"value": 0.0, "low": 0.0, "high": 0.0},
    },
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- the documents ---


@each_document
def test_every_measurement_is_read_from_its_result(path: Path) -> None:
    text = path.read_text()
    assert text == fill_in(text), "make manifests"
    words = set(specification().brackets.values())
    wrong = typed_numbers(text, exceptions(name(path)), words)
    assert not wrong, f"from a result (CONTRIBUTING.md, Figures), or with a reason in {TYPED.name}: {wrong}"


@each_document
def test_every_bracket_says_what_it_is(path: Path) -> None:
    text, told = " ".join(path.read_text().split()), specification()
    for file, key in figures_with_brackets(text):
        assert told.bracket(file, key), f"`bracket` of {file}, or `brackets` in evidence.yaml: {key}"
        assert told.bracket(file, key) in text, f"{name(path)} has {file}#{key} and not what its bracket is"


@each_document
def test_no_line_begins_with_a_mark(path: Path) -> None:
    assert not re.findall(r"^ {0,3}<!--[\w-]+\.json#.*", path.read_text(), re.MULTILINE), "Markdown takes it for HTML"


def test_no_document_has_exceptions_that_is_not_there() -> None:
    assert set(yaml.safe_load(TYPED.read_text())) <= {name(path) for path in documents()}


def test_every_row_with_a_bracket_says_what_it_is() -> None:
    told = specification()
    rows = [(row.of, key) for section in told.sections for row in section.rows for key, _ in row.parts()]
    assert not [(file, key) for file, key in rows if has_bracket(file, key) and not told.bracket(file, key)]


def test_a_bar_that_moved_shows_both_values() -> None:
    told = specification()
    moved = [row for section in told.sections for row in section.rows if row.bar]
    assert moved
    for row in moved:
        assert row.bar
        for stated in (row.bar.first, row.bar.now):
            assert format_figure(row.of, stated.key, row.show, bracket=True) in page(told)
            assert stated.what in page(told)


# --- the mechanism ---


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    (tmp_path / "r.json").write_text(json.dumps(RESULT))
    monkeypatch.setattr(figure_references, "RESULTS", tmp_path)
    figure_references.results.cache_clear()
    yield
    figure_references.results.cache_clear()


@pytest.mark.usefixtures("result")
@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("gain/2/even .2f", "1.10"),
        ("gain/2/even .2f []", "1.10 [1.00, 1.20]"),
        ("gain/2/even gain:.0% []", "10 % [0 %, 20 %]"),
        ("gain/4/even loss:.0% []", "10 % [5 %, 15 %]"),
        ("lost .0f []", "0"),
        ("n ,.0f", "60"),
        ("slower .0f", "2"),
        ("best s", "suffix"),
        ("errors/broken: gone, kill .0f", "6"),
        ("least:gain/*/even .1f", "0.9"),
        ("most:gain/4/even,gain/*/even/low .1f", "0.9"),
        ("count:gain/*/even .0f", "2"),
    ],
)
def test_a_reference_is_filled_in(reference: str, text: str) -> None:
    marked = f"<!--r.json#{reference}-->{text}<!--/-->"
    assert render_template(f"so {{r.json#{reference}}}.") == f"so {marked}."
    assert fill_in(f"so <!--r.json#{reference}-->1.7 [2, 3]<!--/-->.") == f"so {marked}."
    assert not typed_numbers(f"so {marked}.", {})


@pytest.mark.usefixtures("result")
@pytest.mark.parametrize("key", ["nothing", "least:nothing/*", "errors/nothing"])
def test_a_figure_that_is_not_there(key: str) -> None:
    with pytest.raises(KeyError):
        figure("r.json", key)


@pytest.mark.usefixtures("result")
def test_figures_with_brackets_are_known() -> None:
    text = reference("r.json", "lost", ".0f", bracket=True) + reference("r.json", "gain/2/even", ".1f", bracket=True)
    assert list(figures_with_brackets(text)) == [("r.json", "gain/2/even")]


@pytest.mark.parametrize(
    "text", ["1.38 of it", "12 to 16 % faster", "2x as fast", "29,507 requests", "in 77 ms", "2 GB"]
)
def test_a_typed_measurement_is_found(text: str) -> None:
    assert typed_numbers(text, {})
    assert not typed_numbers(text, [text])


@pytest.mark.parametrize(
    "text",
    [
        "`1.38`",
        "```\n1.38\n```",
        "    1.38 in code",
        "[a](b/1.38)",
        "http://127.0.0.1:8000",
        "smg 1.13.0",
        "8 replicas",
    ],
)
def test_what_is_no_measurement(text: str) -> None:
    assert not typed_numbers(text, {})


def test_an_exception_that_is_not_in_the_text_is_told() -> None:
    assert typed_numbers("nothing", ["at temperature 0.7"])
