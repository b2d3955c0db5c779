"""Several model-free drafters in one engine: at every step the draft that has earned the most is proposed.

After a step every part can be scored on the tokens that came, proposed or not, so there is nothing to explore. What is
learned is survival, `S_i = P(the first i drafted tokens are accepted)`, by part and by how sure the part was.
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
"""Levels of confidence that are told apart."""
_DECAY = 0.998
_SHRINK = 4.0


class Survival:
    """Counts of accepted drafts [parts, levels, k], forgetting slowly. Holds no text."""

    def __init__(self, num_parts: int, k: int, prior: float) -> None:
        self.hits = np.zeros((num_parts, LEVELS, k)) + prior * 0.6 ** np.arange(1, k + 1)
        self.trials = np.full((num_parts, LEVELS, k), prior)

    def score(self, part: int, draft: Draft, accepted_tokens: Tokens) -> None:
        """Count a draft against the tokens that came. What lies beyond them stays unknown while all agreed."""
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
    """One request: the states of the parts, its own counts, and the drafts that wait for their verdict."""

    __slots__ = ("drafts", "states", "survival")

    def __init__(self, states: list[Any], survival: Survival) -> None:
        self.states = states
        self.survival = survival
        self.drafts: list[Draft] = []


class HybridDrafter:
    """Holds the parts of one engine and what is known of them."""

    def __init__(self, parts: list[Drafter], num_speculative_tokens: int, token_cost: float) -> None:
        self._parts = parts
        self._k = num_speculative_tokens
        self._shared = Survival(len(parts), num_speculative_tokens, prior=1.0)
        self._cost = 1.0 + token_cost * np.arange(num_speculative_tokens + 1)

    def start(self, tokens: Tokens) -> _Request:
        """State of a request that begins with `tokens`."""
        return _Request([part.start(tokens) for part in self._parts], Survival(len(self._parts), self._k, prior=0.0))

    def end(self, request: _Request) -> None:
        """Forget a request."""
        for part, state in zip(self._parts, request.states, strict=True):
            part.end(state)

    def learn(self, request: _Request, tokens: Tokens, new: int) -> None:
        """Score every part's last draft on the tokens that came, and show them to the parts."""
        came = tokens[-new:]
        for i, (part, draft) in enumerate(zip(self._parts, request.drafts, strict=False)):
            self._shared.score(i, draft, came)
            request.survival.score(i, draft, came)
            part.learn(request.states[i], tokens, new)

    def draft(self, request: _Request, tokens: Tokens, limit: int) -> Draft:
        """The draft, cut to the length, that yields most tokens for its time; empty if none is worth it."""
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
        """The request's own survival, shrunk to that of all requests."""
        shared = self._shared.hits[part, level] / self._shared.trials[part, level]
        own = request.survival
        rate: npt.NDArray[np.float64] = (own.hits[part, level] + _SHRINK * shared) / (own.trials[part, level] + _SHRINK)
        return rate


class HybridProposer(Proposer):
    """The class that vLLM loads."""

    options = HybridOptions

    @staticmethod
    def build(options: HybridOptions, num_speculative_tokens: int) -> HybridDrafter:
        """The drafter of these options."""
        return HybridDrafter(build_parts(options, num_speculative_tokens), num_speculative_tokens, options.token_cost)


def _level(confidence: float) -> int:
    return min(int(2 * confidence), LEVELS - 1)


def build_parts(options: HybridOptions, num_speculative_tokens: int) -> list[Drafter]:
    """The parts that the options name."""
    makers: dict[str, Any] = {
        "ngram": lambda: NgramDrafter(num_speculative_tokens),
        "suffix": lambda: SuffixDrafter(num_speculative_tokens),
        "trigram": lambda: TrigramDrafter(options.trigram, num_speculative_tokens),
    }
    return [makers[name]() for name in options.parts]
