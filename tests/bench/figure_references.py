"""Figures in texts, read from results: `<!--load.json#best_other/64 .2f []-->1.09 [1.08, 1.11]<!--/-->`.

The first comment says where a figure is from and how it is written, the second ends it; what stands between them is
filled in by `python -m tests.bench.evidence`. CONTRIBUTING.md ("Figures") has the syntax.
"""

import json
import re
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
TYPED = Path(__file__).with_name("typed_numbers.yaml")
"""Numbers that are no measurements, or of no result: `{document: {phrase: why it is typed}}`; `"*"`: all of them."""

REFERENCE = r"(?P<file>[\w-]+\.json)#(?P<key>.+?) (?P<show>\S+?)(?P<bracket> \[\])?"
_MARKED = re.compile(rf"<!--{REFERENCE}-->(?P<written>.*?)<!--/-->", re.DOTALL)
_TEMPLATE = re.compile(r"\{" + REFERENCE + r"\}")
_OVER = re.compile(r"(least|most|count):(.+)")
_WORDS = {"gain": lambda value: value - 1, "loss": lambda value: 1 - value}

_UNITS = "%|(?:x|\\xd7|times|µs|ms|s|seconds|minutes|kB|MB|GB|GiB)\\b"
_NUMBER = re.compile(rf"(?<![\w.])(?:\d+\.\d+(?![\d.]*\.\d)|\d{{1,3}}(?:,\d{{3}})+|\d+(?= ?(?:{_UNITS})))")
_NO_PROSE = re.compile(
    r"^ *```.*?^ *```|^ {4,}\S.*?$|`[^`]+`|<!--.*?-->|\]\([^)]*\)|https?://\S+", re.MULTILINE | re.DOTALL
)


def documents() -> list[Path]:
    """Every text whose measurements are read from results."""
    named = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "deploy/README.md")]
    return [*named, *sorted((ROOT / "docs").glob("*.md"))]


@cache
def results() -> dict[str, Any]:
    """Every result, by its file's name."""
    return {path.name: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def figure(file: str, key: str) -> Any:
    """One figure `{value, low, high}`, or what else a result holds under `key` ("n", "errors/<name>", a list's length).

    "least:PATTERNS", "most:PATTERNS", "count:PATTERNS": of all figures that a pattern fits, whose "*" are parts of a
    key; patterns are apart by commas. Raises KeyError for what is not there.
    """
    result = results()[file]
    if over := _OVER.fullmatch(key):
        fitting = [f for name, f in result["figures"].items() if any(_fits(name, one) for one in over[2].split(","))]
        if not fitting:
            raise KeyError(f"{file} has no figure that fits {key}")
        if over[1] == "count":
            return _exact(len(fitting))
        return (min if over[1] == "least" else max)(fitting, key=lambda one: one["value"])
    if key in result["figures"]:
        return result["figures"][key]
    head, _, rest = key.partition("/")
    found = result[head][rest] if rest else result[head]
    return found if isinstance(found, str) else _exact(len(found) if isinstance(found, list) else found)


def format_figure(file: str, key: str, show: str, *, bracket: bool = False) -> str:
    """A figure as a text has it. `show`: Python's format, or "gain:" (value - 1) or "loss:" (1 - value) before it."""
    found = figure(file, key)
    if isinstance(found, str):
        return found
    how, _, form = show.rpartition(":")
    ends = [_WORDS[how](found[name]) if how else found[name] for name in ("value", "low", "high")]
    value, *rest = (format(end, form).replace("%", " %") for end in ends)
    low, high = reversed(rest) if how == "loss" else rest
    return f"{value} [{low}, {high}]" if bracket and found["low"] != found["high"] else value


def reference(file: str, key: str, show: str, *, bracket: bool = False) -> str:
    """A figure with the comments around it that say where it is from."""
    return (
        f"<!--{file}#{key} {show}{' []' if bracket else ''}-->{format_figure(file, key, show, bracket=bracket)}<!--/-->"
    )


def render_template(template: str) -> str:
    """A text of evidence.yaml, whose figures are `{load.json#best_other/64 .2f []}`, as Markdown."""
    return _TEMPLATE.sub(lambda m: reference(m["file"], m["key"], m["show"], bracket=bool(m["bracket"])), template)


def fill_in(text: str) -> str:
    """A document with every figure as its result has it now."""
    return _MARKED.sub(lambda m: reference(m["file"], m["key"], m["show"], bracket=bool(m["bracket"])), text)


def figures_with_brackets(text: str) -> Iterator[tuple[str, str]]:
    """File and key of each figure that a text writes with a bracket."""
    for found in _MARKED.finditer(text):
        if " [" in found["written"]:
            yield found["file"], found["key"]


def typed_numbers(text: str, allowed: Collection[str], also: Collection[str] = ()) -> list[str]:
    """Numbers of a text that look like measurements and come of no result, each with what stands around it.

    Code, links and marked figures are left out, and the phrases that are allowed: those that the text must have, and
    `also` those that it may have. A phrase that it must have and has not is in the list, too.
    """
    if "*" in allowed:
        return []
    prose = " ".join(_NO_PROSE.sub(" ", _MARKED.sub(" ", text)).split())
    wrong = [f"not in the text: {phrase!r}" for phrase in allowed if phrase not in prose]
    for phrase in sorted({*allowed, *also}, key=len, reverse=True):
        prose = prose.replace(phrase, " … ")
    return wrong + [prose[max(found.start() - 40, 0) : found.end() + 40] for found in _NUMBER.finditer(prose)]


def exceptions(document: str) -> dict[str, str]:
    """Phrases with numbers that a document may type, and why."""
    return dict(yaml.safe_load(TYPED.read_text()).get(document, {}))


def _fits(key: str, pattern: str) -> bool:
    parts, wanted = key.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _exact(value: float) -> dict[str, float]:
    return {"value": value, "low": value, "high": value}
