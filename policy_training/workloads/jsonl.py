"""Reads prompts from a file of one JSON object per line, plain or gzipped; errors name the line."""

import gzip
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from draftpick.policy_training.workloads.prompts import Message, Prompt

UNLABELLED = "other"


def read_jsonl(
    path: Path, *, temperature: float = 0.0, max_tokens: int = 128, split: str | None = None
) -> list[Prompt]:
    """Read `prompt` (or `text`, or `messages`) of every line, and what else a prompt has where it is given.

    Optional: `id`, `kind` (or `domain`), `source`, `language`, `temperature`, `top_p`, `max_tokens`. Of `messages`,
    those after the last user turn are dropped: an answer is the target's business. Blank lines are skipped, other
    fields ignored, null counts as absent. Defaults: kind "other", id "<kind>-<line number>", source the file's stem;
    temperature and number of tokens are the arguments. `split`: read only lines whose `split` is this one. Raises
    ValueError with file, line and problem; OSError if the file is not readable.
    """
    absent = {"temperature": temperature, "max_tokens": max_tokens, "source": path.name.split(".")[0]}
    found = (_prompt(path, number, line, absent, split) for number, line in _lines(path) if line.strip())
    return [prompt for prompt in found if prompt is not None]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield numbered lines, from 1."""
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}:{number + 1}: damaged gzip file: {error}") from error


def _prompt(path: Path, number: int, line: bytes, absent: dict[str, Any], split: str | None) -> Prompt | None:
    """Parse one line; None if it is of another split. Raises ValueError with the file and the line number."""
    try:
        fields = _fields(line)
        if split is not None and fields.get("split") != split:
            return None
        kind = _text(fields, "kind", "domain") or UNLABELLED
        turns = _turns(fields)
        return Prompt(
            id=_id(fields) or f"{kind}-{number}",
            kind=kind,
            text=turns[-1].content,
            temperature=_temperature(fields.get("temperature", absent["temperature"])),
            max_tokens=_max_tokens(fields.get("max_tokens", absent["max_tokens"])),
            top_p=_top_p(fields.get("top_p", 1.0)),
            history=turns[:-1],
            source=_text(fields, "source") or absent["source"],
            language=_text(fields, "language"),
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


def _turns(fields: dict[str, Any]) -> tuple[Message, ...]:
    """The conversation up to its last user turn."""
    if "messages" in fields:
        return _conversation(fields["messages"])
    text = _text(fields, "prompt", "text")
    if text is None:
        raise ValueError(f"'prompt' (or 'text', 'messages') is missing; fields found: {', '.join(fields) or 'none'}")
    return (Message("user", text),)


def _conversation(messages: Any) -> tuple[Message, ...]:
    if not isinstance(messages, list):
        raise ValueError(f"'messages' must be a list of objects with 'role' and 'content', found {messages!r}")
    turns = []
    for i, message in enumerate(messages):
        role, content = (message.get(name) if isinstance(message, dict) else None for name in ("role", "content"))
        if not (isinstance(role, str) and isinstance(content, str)):
            raise ValueError(f"'messages[{i}]' must have the strings 'role' and 'content', found {message!r}")
        turns.append(Message(role, content))
    while turns and (turns[-1].role != "user" or not turns[-1].content.strip()):
        turns.pop()
    if not turns:
        raise ValueError("'messages' has no user turn")
    return tuple(turns)


def _id(fields: dict[str, Any]) -> str | None:
    """Return the id; an integer is converted to its digits."""
    value = fields.get("id")
    return str(value) if type(value) is int else _text(fields, "id")


def _temperature(value: Any) -> float:
    """Check for a finite number, 0 or more."""
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"'temperature' must be a number, 0 or more, found {value!r}")
    return float(value)


def _top_p(value: Any) -> float:
    """Check for a number in (0, 1]."""
    if type(value) not in (int, float) or not 0 < value <= 1:
        raise ValueError(f"'top_p' must be a number above 0, up to 1, found {value!r}")
    return float(value)


def _max_tokens(value: Any) -> int:
    """Check for an integer, 1 or more."""
    if type(value) is not int or value < 1:
        raise ValueError(f"'max_tokens' must be an integer, 1 or more, found {value!r}")
    return value
