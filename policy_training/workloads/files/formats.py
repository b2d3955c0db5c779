"""What a format of prompts is: how to recognise a row, and how to read it as the fields of `fields.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Format:
    """`recognises` the first row of a file; `convert` returns a row's fields in the names of `draftpick`'s own format.

    `convert` raises `Unusable` for a row without a prompt, ValueError for a wrong field.
    """

    name: str
    recognises: Callable[[Fields], bool]
    convert: Callable[[Fields], Fields]


def required(fields: Fields, name: str, kind: type, of: str) -> Any:
    """Return a field of this type. Raises ValueError that names the field and what `of` prescribes."""
    value = fields.get(name)
    if not isinstance(value, kind):
        found = repr(value)[:80] if name in fields else f"fields {', '.join(fields) or 'none'}"
        raise ValueError(f"'{name}' must be {_ARTICLE[kind]} in {of}, found {found}")
    return value


_ARTICLE: dict[type, str] = {list: "a list", dict: "an object", str: "a string"}
