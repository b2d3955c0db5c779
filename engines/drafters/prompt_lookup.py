"""Drafters that copy from the request's own text: longest n-gram match, and arctic-inference's suffix tree."""

from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from draftpick.engines.drafters.proposer import Draft
from draftpick.engines.drafters.request_tracking import Tokens


class NgramDrafter:
    """Copies the continuation of the last occurrence of the longest n-gram that ends the text (prompt lookup).
    Stateless."""

    def __init__(self, num_speculative_tokens: int, longest: int = 8) -> None:
        self._k = num_speculative_tokens
        self._longest = longest

    def start(self, tokens: Tokens) -> None:
        """Do nothing: the text itself is searched."""

    def learn(self, state: None, tokens: Tokens, new: int) -> None:
        """Do nothing."""

    def end(self, state: None) -> None:
        """Do nothing."""

    def draft(self, state: None, tokens: Tokens, limit: int) -> Draft:
        """Return (at most `limit` tokens, length of the matching n-gram)."""
        at, matched = longest_match(tokens, self._longest)
        return tokens[at : at + min(limit, self._k)].copy(), float(matched)


@njit(cache=True)
def longest_match(tokens: npt.NDArray[np.int32], longest: int) -> tuple[int, int]:
    """Return (position after the latest copy of the longest repeated suffix, length of that suffix)."""
    n = len(tokens)
    at, best = n, 0
    for end in range(n - 2, -1, -1):
        matched = 0
        while matched < longest and matched <= end and tokens[end - matched] == tokens[n - 1 - matched]:
            matched += 1
        if matched > best:
            at, best = end + 1, matched
            if best == longest:
                break
    return at, best


class SuffixDrafter:
    """Suffix decoding (arXiv 2411.04975) over one request's text; a state is a request id in the library's cache."""

    def __init__(
        self,
        num_speculative_tokens: int,
        max_tree_depth: int = 24,
        min_token_prob: float = 0.1,
        max_spec_factor: float = 1.0,
    ) -> None:
        from arctic_inference.suffix_decoding import SuffixDecodingCache

        self._k = num_speculative_tokens
        self._depth = max_tree_depth
        self._options = {"min_token_prob": min_token_prob, "max_spec_factor": max_spec_factor}
        self._names = count()
        self._cache: Any = SuffixDecodingCache(max_tree_depth=max_tree_depth, max_cached_requests=0)

    def start(self, tokens: Tokens) -> int:
        """Return the id of a request that begins with `tokens`."""
        name = next(self._names)
        self._cache.start_request(name, tokens)
        return name

    def learn(self, state: int, tokens: Tokens, new: int) -> None:
        """Add the last `new` tokens."""
        self._cache.add_active_response(state, tokens[-new:])

    def end(self, state: int) -> None:
        """Remove the request from the cache."""
        self._cache.stop_request(state)

    def draft(self, state: int, tokens: Tokens, limit: int) -> Draft:
        """Return (at most `limit` tokens, how many of them the tree expects to be accepted)."""
        context = tokens[-self._depth :]
        found = self._cache.speculate(state, context, max_spec_tokens=min(limit, self._k), **self._options)
        return np.asarray(found.token_ids, np.int32), float(found.score)
