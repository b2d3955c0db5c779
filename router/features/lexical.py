"""Lexical features of a request: named, computed without a model in microseconds."""

import itertools
import math
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from draftpick.engines.profile.profile import TRUNCATED, sampling_mode
from draftpick.router.openai_request import CHARS_PER_TOKEN, MAX_TEXT_CHARS, Request, truncate
from draftpick.router.types import DEFAULT_MAX_TOKENS, Context, Vector

_INSTRUCTION_CHARS = 400
"""Characters read at the beginning and at the end of a request, where the instruction usually is."""
_MAX_WORDS = 400

_CODE_MARKS, _DIGITS = b"{}()[];=<>_`", string.digits.encode()

_WORD = re.compile(r"[a-z]+(?:-[a-z]+)?")
_DIGIT = re.compile(r"\d")
_NON_ASCII = re.compile(r"[^\x00-\x7f]")


def _count(text: str, characters: bytes) -> int:
    """Count these ASCII characters in a text; no UTF-8 byte of another character equals one of them."""
    data = text.encode(errors="replace")
    return len(data) - len(data.translate(None, characters))


def _temperature(request: Request) -> float:
    return min(max((request.sampling or {}).get("temperature", 1.0), 0.0), 2.0)


def _log_max_tokens(request: Request) -> float:
    limit = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    return math.log1p(max(limit, 0.0)) / 10


def _log_chars(request: Request) -> float:
    tokens = request.num_prompt_tokens  # of a prompt without text
    chars = len(request.text) if tokens is None else min(CHARS_PER_TOKEN * tokens, MAX_TEXT_CHARS)
    return math.log1p(chars) / 10


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
    """Share of repeated word pairs: repetitive prompts tend to get repetitive answers."""
    words = request.text.split(None, _MAX_WORDS)[:_MAX_WORDS]
    pairs = len(words) - 1
    return 1 - len(set(itertools.pairwise(words))) / pairs if pairs > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature of a request, roughly in [0, 2].

    `function` computes it from the request; any of `words` (single words or word pairs) at the beginning or the end of
    the request sets it to 1. `labels`: names of low and high values for display (empty: none). `weight`: in the
    distances of learners; the task tells more about a request than the look of its text.
    """

    name: str
    function: Callable[[Request], float] | None = None
    words: tuple[str, ...] = ()
    labels: tuple[str, str] = ("", "")
    weight: float = 1.0


TABLE = (
    Feature("temperature", _temperature, labels=("greedy", "sampled")),
    Feature("log_max_tokens", _log_max_tokens, labels=("short answers", "long answers")),
    Feature("log_chars", _log_chars, labels=("short prompt", "long prompt")),
    Feature("log_turns", _log_turns, labels=("", "many turns")),
    Feature("code_share", _code_share, labels=("", "code"), weight=0.5),
    Feature("digit_share", _digit_share, labels=("", "numbers"), weight=0.5),
    Feature("non_ascii_share", _non_ascii_share, labels=("", "other scripts"), weight=0.5),
    Feature("repetition", _repetition, labels=("", "repetitive")),
    Feature(
        "asks_edit",
        words=(
            *("change", "replace", "rename", "fix", "correct", "edit", "rewrite", "convert", "repeat", "add", "remove"),
            *("delete", "insert", "keep", "refactor", "modify", "substitute", "reproduce", "update", "turn"),
        ),
        labels=("", "edit"),
        weight=2.0,
    ),
    Feature(
        "asks_whole",
        words=("full", "whole", "entire", "complete", "everything else", "nothing else", "unchanged"),
        labels=("", "whole text"),
        weight=2.0,
    ),
    Feature(
        "asks_new",
        words=(
            *("write", "implement", "create", "compose", "finish", "fill in", "explain", "summarise", "summarize"),
            "describe",
        ),
        labels=("", "new text"),
        weight=2.0,
    ),
    Feature(
        "asks_json",
        attrgetter("structured"),
        words=("json", "schema", "yaml", "yml", "csv", "xml", "key-value", "table"),
        labels=("", "JSON or table"),
        weight=2.0,
    ),
)
"""The lexical features in order; every context ends with them."""
FEATURES = tuple(feature.name for feature in TABLE)
_FUNCTIONS = tuple((i, feature.function) for i, feature in enumerate(TABLE) if feature.function is not None)
_WORDS = tuple((i, frozenset(feature.words)) for i, feature in enumerate(TABLE) if feature.words)
_PHRASES = tuple((i, f" {one} ") for i, feature in enumerate(TABLE) for one in feature.words if " " in one)
TEMPERATURE, LOG_MAX_TOKENS, LOG_CHARS = (
    FEATURES.index(name) - len(FEATURES) for name in ("temperature", "log_max_tokens", "log_chars")
)
"""Their index in every context, from its end."""
VERSION = "lexical-v3"
"""Part of every featurizer's id; changes when the meaning of a feature changes."""


def context_of(request: Request, embedding: Vector, featurizer: str) -> Context:
    """Concatenate `embedding` [d] of a request's text and its lexical features."""
    return stored_context(np.concatenate([embedding, lexical_features(request)]), featurizer, request.sampling)


def stored_context(vector: Vector, featurizer: str, sampling: Mapping[str, float] | None = None) -> Context:
    """Rebuild a context from a recorded vector, which contains all other fields as features, but for the truncation of
    `sampling`, the request's sampling fields."""
    if len(vector) < len(FEATURES):
        return Context(vector, featurizer)
    prompt_tokens = math.expm1(10.0 * vector.item(LOG_CHARS)) / CHARS_PER_TOKEN
    max_tokens = math.expm1(10.0 * vector.item(LOG_MAX_TOKENS))
    sampled, truncated = vector.item(TEMPERATURE) > 0, False
    if sampled and sampling and ("top_p" in sampling or "top_k" in sampling):
        truncated = sampling_mode(sampling) == TRUNCATED
    return Context(vector, featurizer, sampled, prompt_tokens, max_tokens, truncated)


def lexical_features(request: Request) -> Vector:
    """Values of `FEATURES`, each roughly in [0, 2]; shape [12], float32."""
    values = [0.0] * len(FEATURES)
    for i, function in _FUNCTIONS:
        values[i] = function(request)
    words = _WORD.findall(truncate(request.text, _INSTRUCTION_CHARS).lower())
    said, text = set(words), f" {' '.join(words)} "
    for i, wanted in _WORDS:
        if not said.isdisjoint(wanted):
            values[i] = 1.0
    for i, phrase in _PHRASES:
        if phrase in text:
            values[i] = 1.0
    return np.asarray(values, np.float32)
