"""From the fields of a row to a prompt; errors name the field, what it must be, and what was found."""

import math
from hashlib import sha256
from typing import Any

from draftpick.policy_training.workloads.files.conversation import conversation, until_user
from draftpick.policy_training.workloads.files.formats import Fields
from draftpick.policy_training.workloads.prompts import Message, Prompt

UNLABELLED = "other"


def prompt_from_fields(fields: Fields, source: str, max_tokens: int) -> Prompt:
    """Read `prompt` (or `text`) or `messages`, and optional `id`, `kind` (or `domain`), `source`, `language`,
    `temperature`, `top_p`, `max_tokens`.

    Defaults: kind "other", an id that is made of the kind and the text's hash, temperature 0, and the arguments. Raises
    `Unusable`, and ValueError.
    """
    kind, turns = _text(fields, "kind", "domain") or UNLABELLED, _turns(fields)
    return Prompt(
        id=_id(fields) or f"{kind}-{_digest(turns)}",
        kind=kind,
        text=turns[-1].content,
        temperature=_temperature(fields.get("temperature", 0.0)),
        max_tokens=_max_tokens(fields.get("max_tokens", max_tokens)),
        top_p=_top_p(fields.get("top_p", 1.0)),
        history=turns[:-1],
        source=_text(fields, "source") or source,
        language=_text(fields, "language"),
    )


def _turns(fields: Fields) -> tuple[Message, ...]:
    if "messages" in fields:
        return conversation(fields["messages"])
    text = _text(fields, "prompt", "text")
    if text is None:
        raise ValueError(f"'prompt' (or 'text', 'messages') is missing; fields found: {', '.join(fields) or 'none'}")
    return until_user([Message("user", text)])


def _digest(turns: tuple[Message, ...]) -> str:
    return sha256("\0".join(f"{turn.role}\0{turn.content}" for turn in turns).encode()).hexdigest()[:12]


def _text(fields: Fields, *names: str) -> str | None:
    """Return the first present of the named fields; it must be a string that is not empty."""
    name = next((n for n in names if n in fields), None)
    if name is None:
        return None
    value = fields[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"'{name}' must be a non-empty string, found {value!r}")
    return value


def _id(fields: Fields) -> str | None:
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
