"""Prompts drawn from the templates in `data/`.

An entry is a Jinja template, or a mapping. A mapping's `draw` names variables, each a Jinja expression; its other
fields are templates that may use them. All are evaluated in order, and so draw their numbers. A mapping with a `text`
gives that text, any other gives its variables and fields. An entry may use: the lists and entries of its file and of
vocabulary.yaml, the variables of its caller, and the functions in `Templates`.
"""

import functools
import json
from collections.abc import Mapping
from random import Random
from typing import Any

from jinja2 import Environment, StrictUndefined, Template, pass_context
from jinja2.environment import TemplateExpression
from jinja2.runtime import Context

from draftpick.policy_training.workloads import exercises, library
from draftpick.policy_training.workloads.data import read

_JINJA = Environment(  # noqa: S701  plain text
    variable_start_string="{", variable_end_string="}", undefined=StrictUndefined, keep_trailing_newline=True
)
Entry = str | Mapping[str, Any]


class Templates:
    """The templates of one kind, filled with draws of `rng`."""

    def __init__(self, kind: str, rng: Random) -> None:
        self._rng = rng
        self._names: dict[str, Any] = {
            **{name: getattr(rng, name) for name in ("choice", "random", "randint", "randrange", "sample")},
            **{"draw": self._draw, "repeat": self._repeat, "numbers": self._numbers},
            **{"json": json.dumps, "repr": repr, "functions": library.functions},
            **{"passage": functools.partial(library.passage, rng), "frequent_words": library.frequent_words},
            **{"misspelt": functools.partial(library.misspelt, rng)},
            **{"examples": exercises.examples, "stub": exercises.stub},
            **read("vocabulary"),
            **read(kind),
        }

    def prompt(self) -> str:
        """Draw the file's entry `prompt`."""
        return str(_filled(self._names["prompt"], self._names))

    @pass_context
    def _draw(self, context: Context, entry: Entry, /, **more: Any) -> Any:
        """Draw an entry, with more variables."""
        return _filled(entry, {**context.get_all(), **more})

    @pass_context
    def _repeat(self, context: Context, count: int, entry: Entry) -> list[Any]:
        """Draw an entry several times."""
        return [_filled(entry, context.get_all()) for _ in range(count)]

    def _numbers(self, low: int = -20, high: int = 60, count: int | None = None) -> list[int]:
        """Draw integers, both bounds included; four to eight by default."""
        count = self._rng.randint(4, 8) if count is None else count
        return [self._rng.randint(low, high) for _ in range(count)]


def _filled(entry: Entry, scope: Mapping[str, Any]) -> Any:
    """Return the text of an entry, or its variables and fields."""
    if isinstance(entry, str):
        return _template(entry).render(scope)
    own: dict[str, Any] = {}
    for names, expression in entry.get("draw", {}).items():
        value: Any = _expression(expression)({**scope, **own})
        own.update(zip(names.split(", "), value, strict=True) if "," in names else [(names, value)])
    for name, template in entry.items():
        if name != "draw":
            own[name] = _template(template).render({**scope, **own})
    return own.get("text", own)


@functools.cache
def _template(text: str) -> Template:
    return _JINJA.from_string(text)


@functools.cache
def _expression(text: str) -> TemplateExpression:
    return _JINJA.compile_expression(text, undefined_to_none=False)
