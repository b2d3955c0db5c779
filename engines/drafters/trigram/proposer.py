"""The tri-gram drafter: an adaptive table and a tree search, no model (ADED, arXiv 2407.12021).

vLLM verifies one chain of tokens per step, so the best chain of the tree is proposed.
"""

from pathlib import Path

import numpy as np

from draftpick.engines.drafter_options import TrigramOptions
from draftpick.engines.drafters.draft_length import Draft
from draftpick.engines.drafters.proposer import Proposer
from draftpick.engines.drafters.request_tracking import Tokens
from draftpick.engines.drafters.trigram.table import Table, add_all, empty_table, load_table
from draftpick.engines.drafters.trigram.tree_search import full_search, greedy_search, tree_search

RATE, CAP, WINDOW = 0.04, 3.0, 16
"""ADED's constants: each step adds RATE to every tri-gram of the last WINDOW tokens, up to CAP (arXiv 2407.12021)."""


class TrigramDrafter:
    """Tables and search of one engine. A request's state is its own table."""

    def __init__(self, options: TrigramOptions, num_speculative_tokens: int) -> None:
        self.options = options
        self._k = num_speculative_tokens
        size = options.num_bigrams
        self._shared = load_table(Path(options.table), size) if options.table else empty_table(size)

    def start(self, tokens: Tokens) -> Table:
        """Create the table of a request that begins with `tokens`."""
        own = empty_table(self.options.num_own_bigrams)
        if self.options.learn_prompt:
            add_all(own, tokens, np.float32(RATE * (WINDOW - 2)), np.float32(CAP))
        return own

    def end(self, own: Table) -> None:
        """Do nothing."""

    def learn(self, own: Table, tokens: Tokens, new: int) -> None:
        """Strengthen the tri-grams of the last tokens after a decoding step, regardless of how many are new."""
        recent = tokens[-WINDOW:]
        add_all(own, recent, np.float32(RATE), np.float32(CAP))
        if self.options.shared:
            add_all(self._shared, recent, np.float32(RATE), np.float32(CAP))

    def draft(self, own: Table, tokens: Tokens, limit: int) -> Draft:
        """Return (at most `limit` tokens, how many of them the table expects to be accepted)."""
        draft = np.empty(min(limit, self._k), np.int32)
        if len(tokens) < 2 or not len(draft):
            return draft[:0], 0.0
        a, b = tokens[-2], tokens[-1]
        if self.options.search == "greedy":
            length, expected = greedy_search(self._shared, own, a, b, draft)
        elif self.options.search == "full":
            length, expected = full_search(self._shared, own, a, b, draft)
        else:
            # The seed depends on text and position only, so that a draft does not depend on the rest of the batch.
            seed = (self.options.seed * 1_000_003 + len(tokens)) * 2_654_435_761 % 2**62
            length, expected = tree_search(self._shared, own, a, b, draft, self.options.iterations, seed)
        return draft[:length], expected


class TrigramProposer(Proposer):
    """The class that vLLM loads."""

    options = TrigramOptions

    @staticmethod
    def build(options: TrigramOptions, num_speculative_tokens: int) -> TrigramDrafter:
        return TrigramDrafter(options, num_speculative_tokens)
