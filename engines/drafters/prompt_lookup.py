"""A drafter that copies from the request's own text: the continuation of its longest n-gram match."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from draftpick.engines.drafters.draft_length import Draft
from draftpick.engines.drafters.request_tracking import Tokens


class NgramDrafter:
    """Copies the continuation of the last occurrence, or of the first, of the longest n-gram that ends the text (prompt
    lookup). Stateless."""

    def __init__(
        self, num_speculative_tokens: int, longest: int = 8, shortest: int = 1, *, from_first: bool = False
    ) -> None:
        self._k = num_speculative_tokens
        self._longest, self._shortest, self._from_first = longest, shortest, from_first

    @classmethod
    def as_in_vllm(cls, num_speculative_tokens: int, options: Mapping[str, Any]) -> "NgramDrafter":
        """Return vLLM's method `ngram` with these options: it copies from the first occurrence."""
        longest = options.get("prompt_lookup_max") or options.get("prompt_lookup_min") or 5
        shortest = options.get("prompt_lookup_min") or longest
        return cls(num_speculative_tokens, int(longest), int(shortest), from_first=True)

    def start(self, tokens: Tokens) -> None:
        """Do nothing: the text itself is searched."""

    def learn(self, state: None, tokens: Tokens, new: int) -> None:
        """Do nothing."""

    def end(self, state: None) -> None:
        """Do nothing."""

    def draft(self, state: None, tokens: Tokens, limit: int) -> Draft:
        """Return (at most `limit` tokens, length of the matching n-gram)."""
        at, matched = longest_match(tokens, self._longest, self._from_first)
        if matched < self._shortest:
            return tokens[:0], 0.0
        return tokens[at : at + min(limit, self._k)].copy(), float(matched)


@njit(cache=True)
def longest_match(tokens: npt.NDArray[np.int32], longest: int, first: bool = False) -> tuple[int, int]:
    """Return (position after the latest copy, or after the first, of the longest repeated suffix, its length)."""
    n = len(tokens)
    at, best = n, 0
    for end in range(n - 2, -1, -1):
        matched = 0
        while matched < longest and matched <= end and tokens[end - matched] == tokens[n - 1 - matched]:
            matched += 1
        if matched > best or (first and 0 < matched == best):
            at, best = end + 1, matched
            if best == longest and not first:
                break
    return at, best
