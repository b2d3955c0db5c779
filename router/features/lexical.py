"""What a request says of itself without a model: named features that cost microseconds."""

import itertools
import math
import re
import string
from collections.abc import Callable

import numpy as np

from draftpick.router.openai_request import Request, truncate
from draftpick.router.types import DEFAULT_MAX_TOKENS, Context, Vector

_CHARS_PER_TOKEN = 4.0
_INSTRUCTION_CHARS = 400
"""A request is read at its beginning and its end, where people say what they want."""
_MAX_WORDS = 400

_CODE_MARKS, _DIGITS = b"{}()[];=<>_`", string.digits.encode()

_ASKS = {
    "asks_edit": (
        *("change", "replace", "rename", "fix", "correct", "edit", "rewrite", "convert", "repeat", "add", "remove"),
        *("delete", "insert", "keep", "refactor", "modify", "substitute", "reproduce", "update", "turn"),
    ),
    "asks_whole": ("full", "whole", "entire", "complete", "everything else", "nothing else", "unchanged"),
    "asks_new": (
        *("write", "implement", "create", "compose", "finish", "fill in", "explain", "summarise", "summarize"),
        "describe",
    ),
    "asks_json": ("json", "schema", "yaml", "yml", "csv", "xml", "key-value", "table"),
}
"""What the instruction says: an edit, all of a text again, a new text, a form to fill. Words, or two in a row."""
_PHRASES = tuple((name, f" {one} ") for name, wanted in _ASKS.items() for one in wanted if " " in one)
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)?")
_DIGIT = re.compile(r"\d")
_NON_ASCII = re.compile(r"[^\x00-\x7f]")


def _count(text: str, characters: bytes) -> int:
    """How many of these ASCII characters a text has; no byte of another character in UTF-8 is one of them."""
    data = text.encode(errors="replace")
    return len(data) - len(data.translate(None, characters))


def _temperature(request: Request) -> float:
    return min(max((request.sampling or {}).get("temperature", 1.0), 0.0), 2.0)


def _log_max_tokens(request: Request) -> float:
    sampling = request.sampling or {}
    limit = next((sampling[name] for name in _LIMITS if name in sampling), DEFAULT_MAX_TOKENS)
    return math.log1p(max(limit, 0.0)) / 10


def _log_chars(request: Request) -> float:
    return math.log1p(len(request.text)) / 10


def _log_turns(request: Request) -> float:
    return math.log1p(request.turns)


def _code_share(request: Request) -> float:
    return _count(request.text, _CODE_MARKS) / max(len(request.text), 1)


def _digit_share(request: Request) -> float:
    text = request.text
    digits = _count(text, _DIGITS) if text.isascii() else len(_DIGIT.findall(text))
    return digits / max(len(text), 1)


def _non_ascii_share(request: Request) -> float:
    if request.text.isascii():
        return 0.0
    return len(_NON_ASCII.findall(request.text)) / len(request.text)


def _repetition(request: Request) -> float:
    """Share of the pairs of words that came before: what copies itself in a prompt is copied in its answer."""
    words = request.text.split(None, _MAX_WORDS)[:_MAX_WORDS]
    pairs = len(words) - 1
    return 1 - len(set(itertools.pairwise(words))) / pairs if pairs > 0 else 0.0


_FEATURES: dict[str, Callable[[Request], float]] = {
    "temperature": _temperature,
    "log_max_tokens": _log_max_tokens,
    "log_chars": _log_chars,
    "log_turns": _log_turns,
    "code_share": _code_share,
    "digit_share": _digit_share,
    "non_ascii_share": _non_ascii_share,
    "repetition": _repetition,
}
FEATURES = (*_FEATURES, *_ASKS)
"""Names of the lexical features, in their order; they are the end of every context."""
TEMPERATURE, LOG_MAX_TOKENS, LOG_CHARS = (
    FEATURES.index(name) - len(FEATURES) for name in ("temperature", "log_max_tokens", "log_chars")
)
"""Where these stand in every context, from its end."""
VERSION = "lexical-v3"
"""Part of every featurizer's id: another when a feature changes its meaning."""


def context_of(request: Request, embedding: Vector, featurizer: str) -> Context:
    """The context of a request: `embedding` [d] of its text, then its lexical features."""
    return stored_context(np.concatenate([embedding, lexical_features(request)]), featurizer)


def stored_context(vector: Vector, featurizer: str) -> Context:
    """The context of a vector: what the request says outright is read from it, so a record tells all of a decision."""
    if len(vector) < len(FEATURES):
        return Context(vector, featurizer)
    prompt_tokens = math.expm1(10.0 * vector.item(LOG_CHARS)) / _CHARS_PER_TOKEN
    max_tokens = math.expm1(10.0 * vector.item(LOG_MAX_TOKENS))
    return Context(vector, featurizer, bool(vector.item(TEMPERATURE) > 0), prompt_tokens, max_tokens)


def lexical_features(request: Request) -> Vector:
    """The features of `FEATURES`, each roughly in [0, 2]; shape [12], float32."""
    words = _WORD.findall(truncate(request.text, _INSTRUCTION_CHARS).lower())
    said, text = set(words), f" {' '.join(words)} "
    asks = {name: not said.isdisjoint(wanted) for name, wanted in _ASKS.items()}
    for name, phrase in _PHRASES:
        asks[name] |= phrase in text
    asks["asks_json"] |= request.structured
    return np.asarray([*(feature(request) for feature in _FEATURES.values()), *asks.values()], np.float32)
