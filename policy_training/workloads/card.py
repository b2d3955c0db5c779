"""The data card of a file of prompts: what others need to know, or to repeat a figure."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from draftpick.policy_training.workloads.files import PromptFile
from draftpick.policy_training.workloads.sources import PromptSource

_MAX_NAMED = 5


def prompt_card(file: PromptFile) -> dict[str, Any]:
    """Name, checksum and format of the file; numbers of prompts by source, kind, language and split."""
    prompts = file.prompts
    return {
        "file": file.path.name,
        "sha256": file.sha256,
        "format": file.format,
        "prompts": len(prompts),
        "conversations": sum(bool(prompt.history) for prompt in prompts),
        "sources": _counts(prompt.source for prompt in prompts),
        "kinds": _counts(prompt.kind for prompt in prompts),
        "languages": _counts(prompt.language or "unknown" for prompt in prompts),
        "splits": _counts(file.splits[prompt.id] for prompt in prompts),
        "left_out": dict(file.unusable),
    }


def prompt_cards(sources: Sequence[str], max_tokens: int = 128) -> list[dict[str, Any]]:
    """The cards of the files of `FILE[:kind][@n]`, each once; generated prompts have none."""
    files = (PromptSource.parse(source).file(max_tokens) for source in sources)
    return [prompt_card(file) for file in dict.fromkeys(file for file in files if file is not None)]


def describe(card: dict[str, Any]) -> str:
    """One line: the format, how much of what, and the rows left out by reason."""
    kinds, sources = (_several(card[name]) for name in ("kinds", "sources"))
    splits = ", ".join(f"{count} {split}" for split, count in card["splits"].items())
    text = (
        f"{card['file']}: {card['format']}, {card['prompts']} prompts ({card['conversations']} of several turns; "
        f"{splits}), kinds {kinds}, sources {sources}, sha256 {card['sha256'][:12]}"
    )
    left_out = ", ".join(f"{count} {reason}" for reason, count in card["left_out"].items())
    return f"{text}; left out: {left_out}" if left_out else text


def _counts(values: Any) -> dict[str, int]:
    """Numbers by value, the most frequent first."""
    return dict(Counter(values).most_common())


def _several(counts: dict[str, int]) -> str:
    names, more = list(counts)[:_MAX_NAMED], len(counts) - _MAX_NAMED
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")
