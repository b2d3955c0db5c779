"""Several model-free drafters in one engine: each step proposes the draft with the highest expected gain.

Every part can be scored on the decoded tokens, whether its draft was proposed or not, so no exploration is needed. The
learned quantity is survival, `S_i = P(the first i drafted tokens are accepted)`, by part and confidence level.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from draftpick.engines.drafter_options import HybridOptions
from draftpick.engines.drafters.prompt_lookup import NgramDrafter, SuffixDrafter
from draftpick.engines.drafters.proposer import Draft, Drafter, Proposer
from draftpick.engines.drafters.request_tracking import Tokens
from draftpick.engines.drafters.trigram.proposer import TrigramDrafter

LEVELS = 16
"""Number of confidence levels."""
_DECAY = 0.998
_SHRINK = 4.0


class Survival:
    """Exponentially discounted counts of accepted drafts [parts, levels, k]. Holds no text."""

    def __init__(self, num_parts: int, k: int, prior: float) -> None:
        self.hits = np.zeros((num_parts, LEVELS, k)) + prior * 0.6 ** np.arange(1, k + 1)
        self.trials = np.full((num_parts, LEVELS, k), prior)

    def score(self, part: int, draft: Draft, accepted_tokens: Tokens) -> None:
        """Score a draft against the decoded tokens. Positions beyond them stay unknown if all tokens matched."""
        tokens, level = draft[0], _level(draft[1])
        seen = min(len(tokens), len(accepted_tokens))
        if seen == 0:
            return
        differ = np.flatnonzero(tokens[:seen] != accepted_tokens[:seen])
        agreed = int(differ[0]) if len(differ) else seen
        known = len(tokens) if agreed < seen else seen
        self.hits[part, level, :known] *= _DECAY
        self.trials[part, level, :known] *= _DECAY
        self.hits[part, level, :agreed] += 1
        self.trials[part, level, :known] += 1


class _Request:
    """One request: states of the parts, its own counts, and the unscored drafts."""

    __slots__ = ("drafts", "states", "survival")

    def __init__(self, states: list[Any], survival: Survival) -> None:
        self.states = states
        self.survival = survival
        self.drafts: list[Draft] = []


class HybridDrafter:
    """The parts of one engine and their survival statistics."""

    def __init__(self, parts: list[Drafter], num_speculative_tokens: int, token_cost: float) -> None:
        self._parts = parts
        self._k = num_speculative_tokens
        self._shared = Survival(len(parts), num_speculative_tokens, prior=1.0)
        self._cost = 1.0 + token_cost * np.arange(num_speculative_tokens + 1)

    def start(self, tokens: Tokens) -> _Request:
        """Create the state of a request that begins with `tokens`."""
        return _Request([part.start(tokens) for part in self._parts], Survival(len(self._parts), self._k, prior=0.0))

    def end(self, request: _Request) -> None:
        """Discard a request."""
        for part, state in zip(self._parts, request.states, strict=True):
            part.end(state)

    def learn(self, request: _Request, tokens: Tokens, new: int) -> None:
        """Score every part's last draft on the new tokens, and pass the tokens to the parts."""
        came = tokens[-new:]
        for i, (part, draft) in enumerate(zip(self._parts, request.drafts, strict=False)):
            self._shared.score(i, draft, came)
            request.survival.score(i, draft, came)
            part.learn(request.states[i], tokens, new)

    def draft(self, request: _Request, tokens: Tokens, limit: int) -> Draft:
        """Return the draft, truncated to the length with the most expected tokens per time; empty if none pays off."""
        request.drafts = []
        best, chosen = 1.0, tokens[:0]
        for i, (part, state) in enumerate(zip(self._parts, request.states, strict=True)):
            proposed, confidence = part.draft(state, tokens, min(limit, self._k))
            request.drafts.append((proposed, confidence))
            if len(proposed):
                survival = self._survival(request, i, _level(confidence))[: len(proposed)]
                value = (1 + survival.cumsum()) / self._cost[1 : len(proposed) + 1]
                length = int(value.argmax())
                if value[length] > best:
                    best, chosen = float(value[length]), proposed[: length + 1]
        return chosen, best

    def _survival(self, request: _Request, part: int, level: int) -> npt.NDArray[np.float64]:
        """Survival of the request itself, shrunk towards that of all requests."""
        shared = self._shared.hits[part, level] / self._shared.trials[part, level]
        own = request.survival
        rate: npt.NDArray[np.float64] = (own.hits[part, level] + _SHRINK * shared) / (own.trials[part, level] + _SHRINK)
        return rate


class HybridProposer(Proposer):
    """The class that vLLM loads."""

    options = HybridOptions

    @staticmethod
    def build(options: HybridOptions, num_speculative_tokens: int) -> HybridDrafter:
        return HybridDrafter(build_parts(options, num_speculative_tokens), num_speculative_tokens, options.token_cost)


def _level(confidence: float) -> int:
    return min(int(2 * confidence), LEVELS - 1)


def build_parts(options: HybridOptions, num_speculative_tokens: int) -> list[Drafter]:
    """Build the parts named in the options."""
    makers: dict[str, Any] = {
        "ngram": lambda: NgramDrafter(num_speculative_tokens),
        "suffix": lambda: SuffixDrafter(num_speculative_tokens),
        "trigram": lambda: TrigramDrafter(options.trigram, num_speculative_tokens),
    }
    return [makers[name]() for name in options.parts]
