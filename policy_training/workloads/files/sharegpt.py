"""ShareGPT: `conversations` of {from, value}; a row may hold {role, content} instead."""

from draftpick.policy_training.workloads.files.conversation import ROLES, Unusable
from draftpick.policy_training.workloads.files.formats import Fields, Format, required

_NAME = "ShareGPT"
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}


def _convert(row: Fields) -> Fields:
    turns = required(row, "conversations", list, _NAME)
    messages = [_message(turn, i) for i, turn in enumerate(turns)]
    if not messages or messages[0]["role"] == "assistant":
        raise Unusable("begins with an answer" if messages else "no user turn")
    kept: Fields = {name: row[name] for name in ("id", "source", "language", "split") if name in row}
    return {**kept, "kind": row.get("kind") or "chat", "messages": messages}


def _message(turn: object, i: int) -> dict[str, str]:
    said = turn if isinstance(turn, dict) else {}
    role, text = said.get("from", said.get("role")), said.get("value", said.get("content"))
    if not (isinstance(role, str) and isinstance(text, str)):
        raise ValueError(f"'conversations[{i}]' must have the strings 'from' and 'value', found {turn!r:.80}")
    role = _ROLES.get(role, role)
    if role not in ROLES:
        raise Unusable(f"message of role {role!r}")
    return {"role": role, "content": text}


SHAREGPT = Format(_NAME, lambda row: "conversations" in row, _convert)
