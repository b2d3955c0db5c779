"""Files of prompts in the formats that people have: `read_file` recognises the format and says which one it took.

To add a format: write a module with a `Format` (formats.py) and add it to `FORMATS`.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from draftpick.policy_training.workloads.files.conversation import Unusable
from draftpick.policy_training.workloads.files.fields import prompt_from_fields
from draftpick.policy_training.workloads.files.formats import Format
from draftpick.policy_training.workloads.files.openai_batch import OPENAI_BATCH
from draftpick.policy_training.workloads.files.question_files import SPEC_BENCH, SPEED_BENCH
from draftpick.policy_training.workloads.files.rows import read_rows
from draftpick.policy_training.workloads.files.sharegpt import SHAREGPT
from draftpick.policy_training.workloads.prompts import Message, Prompt
from draftpick.policy_training.workloads.splits import Split, split_of

FORMATS = (
    OPENAI_BATCH,
    SHAREGPT,
    SPEED_BENCH,
    SPEC_BENCH,
    Format("JSON lines of prompts or messages", lambda row: True, lambda row: row),
)
"""In order: the first one that recognises the first row of a file reads the file."""
PLAIN_TEXT = Format("plain text", lambda row: False, lambda row: row)


@dataclass(frozen=True, slots=True, eq=False)
class PromptFile:
    """A file of prompts. `format`: the name of its format; `sha256` of its bytes.

    `unusable`: rows that hold no prompt, counted by reason; `own_temperature`: ids of the prompts whose row says one;
    `splits`: split by prompt id, from the rows' `split`, or from the prompts' sources if no row has one.
    """

    path: Path
    format: str
    sha256: str
    prompts: tuple[Prompt, ...]
    unusable: Mapping[str, int]
    own_temperature: frozenset[str]
    splits: Mapping[str, str]

    def of_split(self, split: Split) -> list[Prompt]:
        """The prompts of a split. Raises ValueError if it is empty."""
        found = [prompt for prompt in self.prompts if self.splits[prompt.id] == split]
        if not found:
            there = ", ".join(sorted(set(self.splits.values()))) or "none"
            raise ValueError(f"{self.path}: no prompt of split {split!r} (found: {there}); write `split` in each row")
        return found


def read_file(path: Path, *, max_tokens: int = 128) -> PromptFile:
    """Read a file of prompts in any format of `FORMATS`, or plain text; `max_tokens` is that of rows that say none.

    Blank lines are skipped, unknown fields ignored, null counts as absent. The default source of a prompt is the file's
    stem. Raises ValueError with file, line, field and fix; OSError if the file is not readable.
    """
    state = path.stat()
    return _read_file(path, max_tokens, (state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=4)
def _read_file(path: Path, max_tokens: int, state: tuple[int, int]) -> PromptFile:
    """As `read_file`; a file in the same `state` is read once."""
    plain, rows = read_rows(path)
    format_, source = PLAIN_TEXT if plain else None, path.name.split(".")[0]
    prompts: dict[str, Prompt] = {}
    said: dict[str, dict[str, Any]] = {}
    unusable, conversations = Counter[str](), set[tuple[tuple[Message, ...], str]]()
    for place, row in rows:
        try:
            fields = _fields({"prompt": row} if plain else row)
            format_ = format_ or next(one for one in FORMATS if one.recognises(fields))
            fields = _fields(format_.convert(fields))
            prompt = prompt_from_fields(fields, source, max_tokens)
            if (conversation := (prompt.history, prompt.text)) in conversations:
                raise Unusable("duplicate")
        except Unusable as reason:
            unusable[str(reason)] += 1
            continue
        except ValueError as error:
            raise ValueError(f"{path}:{place}: {error}") from error
        conversations.add(conversation)
        if prompt.id in prompts:
            prompt = replace(prompt, id=f"{prompt.id}-{place}")
        prompts[prompt.id], said[prompt.id] = prompt, fields
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return PromptFile(
        path,
        format_.name if format_ else FORMATS[-1].name,
        digest,
        tuple(prompts.values()),
        dict(unusable),
        frozenset(i for i, fields in said.items() if "temperature" in fields),
        _splits(prompts, said),
    )


def _fields(row: Any) -> dict[str, Any]:
    """Return the fields of a row that are not null."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    return {name: value for name, value in row.items() if value is not None}


def _splits(prompts: Mapping[str, Prompt], said: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    if any("split" in fields for fields in said.values()):
        return {i: str(fields.get("split", "none")) for i, fields in said.items()}
    return {i: split_of(prompt) for i, prompt in prompts.items()}
