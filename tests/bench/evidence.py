"""Every figure that is told of the project, and the command that makes it: `python -m tests.bench.evidence`.

Writes docs/evidence.md from evidence.yaml, which says in words what is shown, and from the results themselves, so that
no figure is copied by hand.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "evidence.md"
_SPECIFICATION = Path(__file__).with_name("evidence.yaml")
_LINKS = "../tests/bench/results/"


class Row(BaseModel):
    """One figure: a key of a result's `figures`. `show`: how Python writes it; `unit`: what follows it."""

    model_config = ConfigDict(extra="forbid")

    what: str
    of: str
    key: str
    show: str = ".2f"
    unit: str = ""


class Section(BaseModel):
    """`pictures`: what they show, by file; `made_by`: the command of each result that the section has figures of."""

    model_config = ConfigDict(extra="forbid")

    title: str
    says: str
    pictures: dict[str, str] = {}
    rows: list[Row] = []
    made_by: dict[str, str]
    then: str = ""


class Evidence(BaseModel):
    """The whole page."""

    model_config = ConfigDict(extra="forbid")

    says: str
    sections: list[Section]


def specification() -> Evidence:
    """As it is written. Raises ValidationError."""
    return Evidence.model_validate(yaml.safe_load(_SPECIFICATION.read_text()))


def page(told: Evidence) -> str:
    """The page in Markdown. Raises KeyError for a figure that no result has."""
    results = {path.name: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    parts = ["# Evidence", told.says.strip()]
    for section in told.sections:
        parts += [f"## {section.title}", section.says.strip()]
        parts += [f"![{words}]({_LINKS}{name})" for name, words in section.pictures.items()]
        if section.rows:
            parts.append("\n".join(_table(section, results)))
        parts.append("\n".join(_sources(section, results)))
        if section.then:
            parts.append(section.then.strip())
    return "\n\n".join(parts) + "\n"


def _table(section: Section, results: dict[str, Any]) -> Iterator[str]:
    yield "| what | figure |"
    yield "|---|---|"
    for row in section.rows:
        yield f"| {row.what} | {_figure(row, results)} |"


def _figure(row: Row, results: dict[str, Any]) -> str:
    figure = results[row.of]["figures"][row.key]
    value, low, high = (format(figure[name], row.show) for name in ("value", "low", "high"))
    return (value if low == high else f"{value} [{low}, {high}]") + (f" {row.unit}" if row.unit else "")


def _sources(section: Section, results: dict[str, Any]) -> Iterator[str]:
    for name, command in section.made_by.items():
        found = results[name]
        yield f"- [{name}]({_LINKS}{name}): `{command}`; n = {found['n']:,}; {found['machine']}"


if __name__ == "__main__":
    PAGE.write_text(page(specification()))
    print(PAGE.relative_to(Path.cwd()), file=sys.stderr)
