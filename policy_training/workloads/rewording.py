"""The same task in other words: what a router must not be fooled by."""

import re
from dataclasses import replace
from random import Random

from policy_training.workloads.prompts import Prompt

_FRAMES = (
    "Could you help me with the following? {text}",
    "Hi there! I have a request for you.\n\n{text}",
    "{text}\n\nThanks in advance for your help.",
    "Here is what I need:\n{text}",
    "I would be grateful for an answer to this.\n\n{text}",
    "### Task\n{text}\n\n### Answer",
    "Please take care of the request below.\n\n{text}",
    "As part of my work today I have to get this done. {text}",
    "User request: {text}",
)
_SYNONYMS = {
    "write": "compose",
    "explain": "describe",
    "list": "name",
    "summarise": "sum up",
    "summary": "short version",
    "give": "provide",
    "complete": "finish",
    "implement": "program",
    "fix": "correct",
    "replace": "substitute",
    "change": "modify",
    "convert": "turn",
    "extract": "pull out",
    "return": "hand back",
    "repeat": "reproduce",
    "rename": "give a new name to",
    "add": "put in",
    "suggest": "propose",
    "compare": "contrast",
    "shorten": "cut down",
    "solve": "work out",
    "how many": "what number of",
    "how much": "what amount of",
    "what is": "tell me",
}
_WORDS = re.compile(r"(?<![\w`\"'])(" + "|".join(map(re.escape, _SYNONYMS)) + r")(?![\w`\"'(])", re.IGNORECASE)
_FENCE = re.compile(r"(```.*?```)", re.DOTALL)
_MOST = 3


def reword(prompt: Prompt, seed: int) -> Prompt:
    """The prompt in another frame and with other verbs; its id stays, since the task does.

    Quoted code is left as it is. The same prompt and seed give the same words.
    """
    rng = Random(f"{seed} {prompt.id}")
    pieces, left = _FENCE.split(prompt.text), [_MOST]
    words = "".join(piece if piece.startswith("```") else _other_words(piece, left) for piece in pieces)
    return replace(prompt, text=rng.choice(_FRAMES).format(text=words))


def _other_words(text: str, left: list[int]) -> str:
    """The first few words that have a synonym, by it; `left` counts down."""

    def other(match: re.Match[str]) -> str:
        if left[0] == 0:
            return match[0]
        left[0] -= 1
        word = _SYNONYMS[match[0].lower()]
        return word.capitalize() if match[0][0].isupper() else word

    return _WORDS.sub(other, text)
