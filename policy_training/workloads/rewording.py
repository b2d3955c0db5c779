"""The same task in other words: what a router must not be fooled by."""

import functools
import re
from dataclasses import replace
from random import Random

from draftpick.policy_training.workloads.data import read
from draftpick.policy_training.workloads.prompts import Prompt

_FENCE = re.compile(r"(```.*?```)", re.DOTALL)
_MAX_SYNONYMS = 3


def reword(prompt: Prompt, seed: int) -> Prompt:
    """The prompt in another frame and with other verbs; its id stays, since the task does.

    Quoted code is left as it is. The same prompt and seed give the same words.
    """
    rng = Random(f"{seed} {prompt.id}")
    pieces, left = _FENCE.split(prompt.text), [_MAX_SYNONYMS]
    words = "".join(piece if piece.startswith("```") else _other_words(piece, left) for piece in pieces)
    return replace(prompt, text=rng.choice(read("rewording")["frames"]).format(text=words))


@functools.cache
def _words() -> re.Pattern[str]:
    """Matches words that have a synonym, outside names and quotes."""
    words = "|".join(map(re.escape, read("rewording")["synonyms"]))
    return re.compile(rf"(?<![\w`\"'])({words})(?![\w`\"'(])", re.IGNORECASE)


def _other_words(text: str, left: list[int]) -> str:
    """The first few words that have a synonym, by it; `left` counts down."""
    synonyms: dict[str, str] = read("rewording")["synonyms"]

    def other(match: re.Match[str]) -> str:
        if left[0] == 0:
            return match[0]
        left[0] -= 1
        word = synonyms[match[0].lower()]
        return word.capitalize() if match[0][0].isupper() else word

    return _words().sub(other, text)
