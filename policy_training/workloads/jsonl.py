"""Reads prompts from a file of one JSON object per line, plain or gzipped; errors name the line."""

import gzip
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from draftpick.policy_training.workloads.prompts import Prompt

UNLABELLED = "other"


def read_jsonl(path: Path, *, temperature: float = 0.0, max_tokens: int = 128) -> list[Prompt]:
    """Read `prompt` (or `text`) and optional `id`, `kind` (or `domain`), `temperature`, `max_tokens` of every line.

    Blank lines are skipped, other fields ignored, null counts as absent. The default kind is "other", the default id
    "<kind>-<line number>"; temperature and number of tokens default to the arguments. Raises ValueError with file, line
    and problem; OSError if the file is not readable.
    """
    absent = {"temperature": temperature, "max_tokens": max_tokens}
    return [_prompt(path, number, line, absent) for number, line in _lines(path) if line.strip()]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield numbered lines, from 1."""
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}:{number + 1}: damaged gzip file: {error}") from error


def _prompt(path: Path, number: int, line: bytes, absent: dict[str, Any]) -> Prompt:
    """Parse one line. Raises ValueError with the file and the line number."""
    try:
        fields = _fields(line)
        kind = _text(fields, "kind", "domain") or UNLABELLED
        return Prompt(
            id=_id(fields) or f"{kind}-{number}",
            kind=kind,
            text=_required(fields),
            temperature=_temperature(fields.get("temperature", absent["temperature"])),
            max_tokens=_max_tokens(fields.get("max_tokens", absent["max_tokens"])),
        )
    except ValueError as error:
        raise ValueError(f"{path}:{number}: {error}") from error


def _fields(line: bytes) -> dict[str, Any]:
    """Return the fields of one line that are not null."""
    fields = json.loads(line.decode("utf-8-sig"))
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, found {type(fields).__name__}")
    return {name: value for name, value in fields.items() if value is not None}


def _text(fields: dict[str, Any], *names: str) -> str | None:
    """Return the first present of the named fields; it must be a string that is not empty."""
    name = next((n for n in names if n in fields), None)
    if name is None:
        return None
    value = fields[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"'{name}' must be a non-empty string, found {value!r}")
    return value


def _required(fields: dict[str, Any]) -> str:
    text = _text(fields, "prompt", "text")
    if text is None:
        raise ValueError(f"'prompt' (or 'text') is missing; fields found: {', '.join(fields) or 'none'}")
    return text


def _id(fields: dict[str, Any]) -> str | None:
    """Return the id; an integer is converted to its digits."""
    value = fields.get("id")
    return str(value) if type(value) is int else _text(fields, "id")


def _temperature(value: Any) -> float:
    """Check for a finite number, 0 or more."""
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"'temperature' must be a number, 0 or more, found {value!r}")
    return float(value)


def _max_tokens(value: Any) -> int:
    """Check for an integer, 1 or more."""
    if type(value) is not int or value < 1:
        raise ValueError(f"'max_tokens' must be an integer, 1 or more, found {value!r}")
    return value
