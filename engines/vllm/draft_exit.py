"""Draft length of a trained head, token by token: draft and verify what is likely enough to be accepted to pay for its
time (draft-exit as in Draft & Verify, arXiv 2309.08168, but by expected tokens per time instead of a threshold).

Acceptance by the draft's own probability is learned from all requests, and a request's deviation from it from its own.
"""

import numpy as np

LEVELS = 10
"""Number of levels of a drafted token's probability."""
_PRIOR = 8.0
"""Weight of what is assumed or known of all requests, in drafted tokens or steps."""
_DECAY = 0.95
_SHARED_DECAY = 0.999
_SHORTEST_REST, _LONGEST_REST = 4, 32
"""Steps without the head, for a request that it slows down."""


class DraftExit:
    """What all requests of an engine share. `draft_cost`, `verify_cost`: time per token, `pass_cost`: time to read a
    step's tokens, as shares of a step without drafting."""

    def __init__(self, draft_cost: float, verify_cost: float, pass_cost: float) -> None:
        self.draft_cost, self.verify_cost, self.pass_cost = draft_cost, verify_cost, pass_cost
        self.trials = np.full((2, LEVELS), _PRIOR)
        self.hits = _PRIOR * np.tile((np.arange(LEVELS) + 0.5) / LEVELS, (2, 1))
        self.tokens = np.full(2, 1.5 * _PRIOR)
        self.costs = np.full(2, _PRIOR)

    def start(self, sampled: bool) -> "Request":
        """Create the state of a request."""
        return Request(self, int(sampled))


class Request:
    """One request. Each step: `score` what was verified; if `drafts`, `add` tokens while it says so; propose `length`
    of them."""

    __slots__ = (
        "_costs", "_expected", "_hits", "_interval", "_passes", "_probabilities", "_rest", "_sampled", "_shared",
        "_survival", "_tokens",
    )  # fmt: skip

    def __init__(self, shared: DraftExit, sampled: int) -> None:
        self._shared, self._sampled = shared, sampled
        self._hits = self._expected = self._tokens = self._costs = 0.0
        self._probabilities: list[float] = []
        self._survival: list[float] = []
        self._passes = self._rest = 0
        self._interval = _SHORTEST_REST

    def score(self, verified: int, accepted: int) -> None:
        """Learn that `accepted` of the `verified` tokens drafted in the last step were accepted."""
        if not self._passes:
            return
        shared, row = self._shared, self._sampled
        for i, probability in enumerate(self._probabilities[: min(verified, accepted + 1)]):
            level, hit = _level(probability), i < accepted
            self._expected = self._expected * _DECAY + shared.hits[row, level] / shared.trials[row, level]
            self._hits = self._hits * _DECAY + hit
            shared.hits[row, level] = shared.hits[row, level] * _SHARED_DECAY + hit
            shared.trials[row, level] = shared.trials[row, level] * _SHARED_DECAY + 1
        cost = 1 + shared.pass_cost + shared.verify_cost * verified + shared.draft_cost * self._passes
        self._tokens = self._tokens * _DECAY + accepted + 1
        self._costs = self._costs * _DECAY + cost
        shared.tokens[row] = shared.tokens[row] * _SHARED_DECAY + accepted + 1
        shared.costs[row] = shared.costs[row] * _SHARED_DECAY + cost
        if self._rate() < 1:
            self._rest, self._interval = self._interval, min(2 * self._interval, _LONGEST_REST)
        else:
            self._interval = _SHORTEST_REST

    def drafts(self) -> bool:
        """Return whether to draft in this step; call once a step."""
        self._probabilities, self._survival, self._passes = [], [], 0
        self._rest = max(0, self._rest - 1)
        return self._rest == 0

    def add(self, probability: float) -> bool:
        """Note a drafted token and its probability; return whether another is worth drafting."""
        shared, row, level = self._shared, self._sampled, _level(probability)
        factor = (self._hits + _PRIOR) / (self._expected + _PRIOR)
        survival = (self._survival[-1] if self._survival else 1.0) * min(
            1.0, factor * float(shared.hits[row, level] / shared.trials[row, level])
        )
        self._probabilities.append(probability)
        self._survival.append(survival)
        self._passes += 1
        mean = min(1.0, factor * float(shared.hits[row].sum() / shared.trials[row].sum()))
        return survival * mean > max(1.0, self._rate()) * (shared.draft_cost + shared.verify_cost)

    def length(self) -> int:
        """Return how many of the drafted tokens are worth verifying: at least one, to learn from."""
        least = max(1.0, self._rate()) * self._shared.verify_cost
        return max(1, sum(survival > least for survival in self._survival))

    def _rate(self) -> float:
        """Tokens per time of a step without drafting, in steps with drafts."""
        shared, row = self._shared, self._sampled
        prior = float(shared.tokens[row] / shared.costs[row])
        return (self._tokens + _PRIOR * prior) / (self._costs + _PRIOR)


def _level(probability: float) -> int:
    return min(int(probability * LEVELS), LEVELS - 1)
