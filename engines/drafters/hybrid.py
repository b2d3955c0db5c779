"""Several model-free drafters in one engine: each step proposes the draft with the highest expected gain.

Each part has its own survival statistics, from which `DraftLength` chooses how many of its tokens to verify.
"""

from typing import Any

from draftpick.engines.drafter_options import HybridOptions, SuffixOptions
from draftpick.engines.drafters.draft_length import Draft, DraftLength, Survival
from draftpick.engines.drafters.prompt_lookup import NgramDrafter
from draftpick.engines.drafters.proposer import Drafter, Proposer
from draftpick.engines.drafters.request_tracking import Tokens
from draftpick.engines.drafters.suffix import SuffixDrafter
from draftpick.engines.drafters.trigram.proposer import TrigramDrafter


class _Request:
    """One request: states of the parts, its own counts by part, and the unscored drafts."""

    __slots__ = ("drafts", "states", "survivals")

    def __init__(self, states: list[Any], survivals: list[Survival]) -> None:
        self.states = states
        self.survivals = survivals
        self.drafts: list[Draft] = []


class HybridDrafter:
    """The parts of one engine and their survival statistics."""

    def __init__(self, parts: list[Drafter], num_speculative_tokens: int, token_cost: float) -> None:
        self._parts = parts
        self._k = num_speculative_tokens
        self._lengths = [DraftLength(num_speculative_tokens, token_cost) for _ in parts]

    def start(self, tokens: Tokens) -> _Request:
        """Create the state of a request that begins with `tokens`."""
        return _Request([part.start(tokens) for part in self._parts], [length.start() for length in self._lengths])

    def end(self, request: _Request) -> None:
        """Discard a request."""
        for part, state in zip(self._parts, request.states, strict=True):
            part.end(state)

    def learn(self, request: _Request, tokens: Tokens, new: int) -> None:
        """Score every part's last draft on the new tokens, and pass the tokens to the parts."""
        for part, state in zip(self._parts, request.states, strict=True):
            part.learn(state, tokens, new)
        for length, survival, draft in zip(self._lengths, request.survivals, request.drafts, strict=False):
            length.learn(survival, draft, tokens[-new:])

    def draft(self, request: _Request, tokens: Tokens, limit: int) -> Draft:
        """Return the draft, truncated to the length with the most expected tokens per time; empty if none pays off."""
        limit = min(limit, self._k)
        request.drafts = [part.draft(s, tokens, limit) for part, s in zip(self._parts, request.states, strict=True)]
        best, chosen = 1.0, tokens[:0]
        for length, survival, draft in zip(self._lengths, request.survivals, request.drafts, strict=True):
            verified, value = length.choose(survival, draft)
            if value > best:
                best, chosen = value, draft[0][:verified]
        return chosen, best


class SuffixProposer(Proposer):
    """A hybrid of one part; the class that vLLM loads for `suffix`."""

    options = SuffixOptions

    @staticmethod
    def build(options: SuffixOptions, num_speculative_tokens: int) -> HybridDrafter:
        suffix = SuffixDrafter(num_speculative_tokens, options)
        return HybridDrafter([suffix], num_speculative_tokens, options.token_cost)


class HybridProposer(Proposer):
    """The class that vLLM loads for `hybrid`."""

    options = HybridOptions

    @staticmethod
    def build(options: HybridOptions, num_speculative_tokens: int) -> HybridDrafter:
        return HybridDrafter(build_parts(options, num_speculative_tokens), num_speculative_tokens, options.token_cost)


def build_parts(options: HybridOptions, num_speculative_tokens: int) -> list[Drafter]:
    """Build the parts named in the options."""
    makers: dict[str, Any] = {
        "ngram": lambda: NgramDrafter(num_speculative_tokens),
        "suffix": lambda: SuffixDrafter(num_speculative_tokens),
        "trigram": lambda: TrigramDrafter(options.trigram, num_speculative_tokens),
    }
    return [makers[name]() for name in options.parts]
