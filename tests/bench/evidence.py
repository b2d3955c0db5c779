"""Every figure that is told of the project, and the command that makes it: `python -m tests.bench.evidence`.

Writes docs/evidence.md from evidence.yaml, which says in words what is shown, and from the results themselves, so that
no figure is copied by hand; then fills in the figures of all other documents (tests/bench/figure_references.py).
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from tests.bench.figure_references import documents, figure, fill_in, reference, render_template, results

PAGE = Path(__file__).parents[2] / "docs" / "evidence.md"
_SPECIFICATION = Path(__file__).with_name("evidence.yaml")
_LINKS = "../tests/bench/results/"


class Stated(BaseModel):
    """What counted for a bar, in words, and the figure by it: `key` of the row's result."""

    model_config = ConfigDict(extra="forbid")

    what: str
    key: str


class Bar(BaseModel):
    """A bar that moved after a run: what counted when it was first stated, and what counts now."""

    model_config = ConfigDict(extra="forbid")

    first: Stated
    now: Stated


class Row(BaseModel):
    """One figure: a key of a result's `figures`. `show`: how Python writes it; `unit`: what follows it.

    `also`: further keys of the same result by what they are, shown in the same row. `bar` takes the place of `key`.
    """

    model_config = ConfigDict(extra="forbid")

    what: str
    of: str
    key: str = ""
    show: str = ".2f"
    unit: str = ""
    also: dict[str, str] = {}
    bar: Bar | None = None

    def parts(self) -> Iterator[tuple[str, str]]:
        """Key and words of each figure of the row."""
        if self.bar:
            yield self.bar.first.key, f"as first stated ({self.bar.first.what})"
            yield self.bar.now.key, f"as stated after the run ({self.bar.now.what})"
        else:
            yield self.key, self.unit
        yield from ((key, words) for words, key in self.also.items())


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
    """The whole page. `brackets`: what a bracket says, by result ("load.json") or beginning of a key in it
    ("loop.json#without_corrections/"), for results that do not say it themselves."""

    model_config = ConfigDict(extra="forbid")

    says: str
    brackets: dict[str, str]
    sections: list[Section]

    def bracket(self, file: str, key: str) -> str:
        """What the bracket of a figure says, by the longest name that fits it; empty if nothing says it."""
        said = results()[file].get("bracket", {})
        known = self.brackets | ({file: said} if isinstance(said, str) else {f"{file}#{k}": v for k, v in said.items()})
        full = f"{file}#{key.split(':', 1)[-1]}"
        fitting = [name for name in known if name == file or (full.startswith(name) and "#" in name)]
        return known[max(fitting, key=len)] if fitting else ""


def specification() -> Evidence:
    """As it is written. Raises ValidationError."""
    return Evidence.model_validate(yaml.safe_load(_SPECIFICATION.read_text()))


def page(on_progress: Evidence) -> str:
    """The page in Markdown. Raises KeyError for a figure that no result has."""
    parts = ["# Evidence", render_template(on_progress.says).strip()]
    for section in on_progress.sections:
        parts += [f"## {section.title}", render_template(section.says).strip()]
        parts += [f"![{words}]({_LINKS}{name})" for name, words in section.pictures.items()]
        if section.rows:
            parts.append("\n".join(_table(section, on_progress)))
        parts.append("\n".join(_sources(section)))
        if section.then:
            parts.append(render_template(section.then).strip())
    return "\n\n".join(parts) + "\n"


def _table(section: Section, on_progress: Evidence) -> Iterator[str]:
    yield "| what | figure | in brackets |"
    yield "|---|---|---|"
    for row in section.rows:
        figures = "; ".join(_written(row, key, words) for key, words in row.parts())
        said = dict.fromkeys(on_progress.bracket(row.of, key) for key, _ in row.parts() if has_bracket(row.of, key))
        yield f"| {render_template(row.what)} | {figures} | {'; '.join(said)} |".replace("|  |", "| |")


def _written(row: Row, key: str, words: str) -> str:
    return reference(row.of, key, row.show, bracket=True) + (f" {words}" if words else "")


def has_bracket(file: str, key: str) -> bool:
    """Whether a figure has a bracket."""
    found: Any = figure(file, key)
    return not isinstance(found, str) and found["low"] != found["high"]


def _sources(section: Section) -> Iterator[str]:
    for name, command in section.made_by.items():
        n = reference(name, "n", ",.0f")
        yield f"- [{name}]({_LINKS}{name}): `{command}`; n = {n}; `{results()[name]['machine']}`"


def main() -> None:
    PAGE.write_text(page(specification()))
    for path in documents():
        text = path.read_text()
        if (now := fill_in(text)) != text:
            path.write_text(now)
            print(f"{path.name}: figures renewed", file=sys.stderr)


if __name__ == "__main__":
    main()
