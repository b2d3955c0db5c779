"""Suffix decoding (arXiv 2411.04975) with arctic-inference's suffix trees, as in vLLM, and drafts cut by survival."""

from itertools import count
from typing import Any

import numpy as np

from draftpick.engines.drafter_options import SuffixOptions
from draftpick.engines.drafters.draft_length import Draft
from draftpick.engines.drafters.request_tracking import Tokens

_OWN_TEXT = SuffixOptions(suffix_decoding_max_cached_requests=0)


class SuffixDrafter:
    """Suffix decoding over a request's text and kept answers; a state is a request id in the library's cache."""

    def __init__(self, num_speculative_tokens: int, options: SuffixOptions = _OWN_TEXT) -> None:
        from arctic_inference.suffix_decoding import SuffixDecodingCache

        self._k = num_speculative_tokens
        self._depth = options.suffix_decoding_max_tree_depth
        self._options = {
            "min_token_prob": options.suffix_decoding_min_token_prob,
            "max_spec_factor": options.suffix_decoding_max_spec_factor,
        }
        self._names = count()
        self._cache: Any = SuffixDecodingCache(self._depth, options.suffix_decoding_max_cached_requests)

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
