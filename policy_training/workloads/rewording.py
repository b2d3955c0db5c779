"""Rewords prompts without changing the task, to test the robustness of a router."""

import functools
import re
from collections.abc import Mapping
from dataclasses import replace
from random import Random

from draftpick.policy_training.workloads.data import read
from draftpick.policy_training.workloads.prompts import Prompt

_FENCE = re.compile(r"(```.*?```)", re.DOTALL)
_MAX_SYNONYMS = 3


def synonyms() -> dict[str, str]:
    """Replacements by word."""
    return dict(read("rewording")["synonyms"])


def reword(prompt: Prompt, seed: int, words: Mapping[str, str] | None = None) -> Prompt:
    """Return the prompt in another frame and with other `words` (`synonyms()`); its id stays, since the task does.

    Quoted code is unchanged. Deterministic.
    """
    rng, replacements = Random(f"{seed} {prompt.id}"), synonyms() if words is None else words
    pieces, left = _FENCE.split(prompt.text), [_MAX_SYNONYMS]
    pattern = _pattern(tuple(replacements))
    text = "".join(p if p.startswith("```") else _other_words(p, pattern, replacements, left) for p in pieces)
    return replace(prompt, text=rng.choice(read("rewording")["frames"]).format(text=text))


@functools.cache
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Match these words outside names and quotes."""
    return re.compile(rf"(?<![\w`\"'])({'|'.join(map(re.escape, words))})(?![\w`\"'(])", re.IGNORECASE)


def _other_words(text: str, pattern: re.Pattern[str], replacements: Mapping[str, str], left: list[int]) -> str:
    """Replace the first few words that have a replacement; `left` counts down."""

    def other(match: re.Match[str]) -> str:
        if left[0] == 0:
            return match[0]
        left[0] -= 1
        word = replacements[match[0].lower()]
        return word.capitalize() if match[0][0].isupper() else word

    return pattern.sub(other, text)
