"""Texts that two sets of prompts share: word n-grams, as contamination of test sets is measured.

What many prompts say is the phrasing of a task, not its content, and does not count (Brown et al. 2020, Language Models
are Few-Shot Learners, appendix C).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.workloads.prompts import Prompt

HELD_OUT, NEAR_COPY = (8, 0.2), (13, 0.5)
"""Words in a row, and the share of a prompt's n-grams that the other set must not hold. A single n-gram is no leak: two
long texts of unrelated sources often share a common expression."""
_PHRASE, _MAX_PROMPTS = 6, 10
"""Words in a row that occur in more than so many prompts are phrasing."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_WORD = re.compile(r"\w+")

Hashes = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Words in a row of two prompts of two sets, by the prompts' ids; `share` of the second one's n-grams is shared."""

    first: str
    second: str
    words: str
    share: float


class PromptSets:
    """Sets of prompts by name, their words hashed once; phrasing is what many prompts of all sets say."""

    def __init__(self, sets: Mapping[str, Sequence[Prompt]]) -> None:
        self._prompts = [prompt for of_set in sets.values() for prompt in of_set]
        self._names = np.repeat(list(sets), [len(of_set) for of_set in sets.values()])
        words = [_words(prompt) for prompt in self._prompts]
        self._hashes = np.fromiter((_hash(word) for of_prompt in words for word in of_prompt), np.uint64)
        self._owners = np.repeat(np.arange(len(words)), [len(of_prompt) for of_prompt in words])
        self._phrasing = _phrasing(self._hashes, self._owners)

    def overlaps(self, first: str, second: str, n: int, min_share: float = 0.0) -> list[Overlap]:
        """One overlap for each prompt of set `second` that shares n words in a row with prompts of set `first`.

        `min_share`: so many of its n-grams occur in `first`.
        """
        grams, owners = _grams(self._hashes, self._owners, n, self._phrasing)
        names = self._names[owners]
        known, holders = _sorted(grams[names == first], owners[names == first])
        asked, askers = grams[names == second], owners[names == second]
        at = np.searchsorted(known, asked)
        hit = at < len(known)
        hit[hit] = known[at[hit]] == asked[hit]
        number = len(self._prompts)
        shares = np.bincount(askers[hit], minlength=number) / np.maximum(np.bincount(askers, minlength=number), 1)
        places = np.flatnonzero(hit & (shares[askers] >= min_share))
        _, each = np.unique(askers[places], return_index=True)
        return [
            Overlap(
                self._prompts[holders[at[place]]].id,
                (own := self._prompts[askers[place]]).id,
                _text(_words(own), asked[place], n),
                float(shares[askers[place]]),
            )
            for place in places[each]
        ]


def split_overlaps(splits: Mapping[str, Sequence[Prompt]]) -> dict[tuple[str, str], list[Overlap]]:
    """Overlaps of train, dev and transfer by pair of splits; pairs without one are absent.

    Transfer must not share texts with the others; dev, which is of train's sources, must not hold near copies of train.
    """
    sets, found = PromptSets(splits), {}
    for first, second, (n, share) in (
        ("train", "dev", NEAR_COPY),
        ("train", "transfer", HELD_OUT),
        ("dev", "transfer", HELD_OUT),
    ):
        if overlaps := sets.overlaps(first, second, n, share):
            found[first, second] = overlaps
    return found


def describe_overlaps(first: str, second: str, overlaps: Sequence[Overlap]) -> str:
    """How many prompts of `second`, and the one that shares most: the pair and some of its words."""
    worst = max(overlaps, key=lambda one: one.share)
    return (
        f"{first} and {second} overlap: {len(overlaps)} prompts of {second}; {worst.second!r} shares "
        f"{worst.share:.0%} of its {len(worst.words.split())}-grams, e.g. with {worst.first!r}: {worst.words!r}"
    )


def _phrasing(hashes: Hashes, owners: Ids) -> Mask:
    """Words that belong to a phrase of many prompts."""
    grams, whose = _grams(hashes, owners, _PHRASE, np.zeros(len(hashes), bool))
    grams, whose = _sorted(grams, whose)
    distinct = np.ones(len(grams), bool)
    distinct[1:] = (grams[1:] != grams[:-1]) | (whose[1:] != whose[:-1])
    found, counts = np.unique(grams[distinct], return_counts=True)
    common = found[counts > _MAX_PROMPTS]
    all_grams = _rolling(hashes, _PHRASE)
    at = np.flatnonzero(np.isin(all_grams, common))
    covered = np.zeros(len(hashes), bool)
    for i in range(_PHRASE):
        covered[at + i] = True
    return covered


def _grams(hashes: Hashes, owners: Ids, n: int, left_out: Mask) -> tuple[Hashes, Ids]:
    """The n-grams that lie within one prompt and hold no word of `left_out`, and the prompt of each."""
    grams = _rolling(hashes, n)
    if not len(grams):
        return grams, np.zeros(0, np.int64)
    before = np.concatenate([[0], np.cumsum(left_out)])
    whole = (owners[: len(grams)] == owners[n - 1 :]) & (before[n:] == before[: len(grams)])
    return grams[whole], owners[: len(grams)][whole]


def _sorted(grams: Hashes, owners: Ids) -> tuple[Hashes, Ids]:
    """By n-gram; the owners of equal ones stay in order."""
    order = np.argsort(grams, kind="stable")
    return grams[order], owners[order]


def _rolling(hashes: Hashes, n: int) -> Hashes:
    """A polynomial hash [words - n + 1] of each n words in a row, modulo 2^64."""
    size = max(len(hashes) - n + 1, 0)
    grams = np.zeros(size, np.uint64)
    for i in range(n if size else 0):
        grams = grams * _FACTOR + hashes[i : i + size]
    return grams


def _words(prompt: Prompt) -> list[str]:
    return [word for turn in prompt.messages for word in _WORD.findall(turn["content"].lower())]


def _text(words: Sequence[str], gram: np.uint64, n: int) -> str:
    """The n words of this hash."""
    grams = _rolling(np.fromiter(map(_hash, words), np.uint64), n)
    at = int(np.flatnonzero(grams == gram)[0])
    return " ".join(words[at : at + n])


@cache
def _hash(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")
