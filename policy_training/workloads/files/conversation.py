"""Conversations of a file: checked, up to the last user turn, in the words that the router reads."""

from collections.abc import Sequence
from typing import Any

from draftpick.policy_training.workloads.prompts import Message

ROLES = frozenset({"system", "developer", "user", "assistant"})
MAX_CHARS = 32_000
"""Longer conversations do not fit the context of most engines: about 8,000 tokens."""


class Unusable(Exception):
    """A well-formed row that is no prompt; the message is the reason, by which such rows are counted."""


def conversation(messages: Any, name: str = "messages") -> tuple[Message, ...]:
    """Messages of OpenAI's chat format up to the last user turn: an answer after it is the target's business.

    Parts of a message are joined as the router joins them. Raises `Unusable`, and ValueError for a wrong structure.
    """
    if not isinstance(messages, list):
        raise ValueError(f"'{name}' must be a list of objects with 'role' and 'content', found {messages!r:.80}")
    last = max((i for i, m in enumerate(messages) if isinstance(m, dict) and m.get("role") == "user"), default=-1)
    return until_user([_message(m, f"{name}[{i}]") for i, m in enumerate(messages[: last + 1])])


def until_user(turns: Sequence[Message]) -> tuple[Message, ...]:
    """The turns up to the last one of the user. Raises `Unusable`."""
    end = max((i for i, turn in enumerate(turns, start=1) if turn.role == "user"), default=0)
    if not end:
        raise Unusable("no user turn")
    turns = tuple(turns[:end])
    if not turns[-1].content.strip():
        raise Unusable("empty user turn")
    if sum(len(turn.content) for turn in turns) > MAX_CHARS:
        raise Unusable(f"over {MAX_CHARS} characters")
    return turns


def _message(message: Any, name: str) -> Message:
    fields = message if isinstance(message, dict) else {}
    role, content = fields.get("role"), fields.get("content")
    if not isinstance(role, str):
        raise ValueError(f"'{name}' must be an object with 'role' and 'content', found {message!r:.80}")
    if role not in ROLES:
        raise Unusable(f"message of role {role!r}")
    if content is None and fields.get("tool_calls"):
        raise Unusable("tool calls")
    return Message(role, _text(content, f"{name}.content"))


def _text(content: Any, name: str) -> str:
    if isinstance(content, str):
        return content
    parts: list[Any] = content if isinstance(content, list) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"'{name}' must be a string, or a list of parts, found {content!r:.80}")
    if not all(isinstance(part.get("text"), str) for part in parts):
        raise Unusable("message with parts other than text")
    return "\n".join(part["text"] for part in parts if part["text"])
