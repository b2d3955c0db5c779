"""The length of a draft by survival: tokens that are unlikely to be accepted are not verified.

A drafted token costs its verification whether it is accepted or not. `S_i = P(the first i drafted tokens are accepted)`
is learned for each confidence level from every full-length draft, verified or not, so no exploration is needed.
"""

import numpy as np
import numpy.typing as npt

from draftpick.engines.drafters.request_tracking import Tokens

Draft = tuple[npt.NDArray[np.int32], float]
"""(tokens, confidence); confidence is comparable within one drafter."""

LEVELS = 16
"""Number of confidence levels."""
_DECAY = 0.998
_SHRINK = 4.0


class Survival:
    """Exponentially discounted counts of accepted drafts [levels, k]. Holds no text."""

    def __init__(self, k: int, prior: float = 0.0) -> None:
        self.hits = np.zeros((LEVELS, k)) + prior * 0.6 ** np.arange(1, k + 1)
        self.trials = np.full((LEVELS, k), prior)

    def score(self, draft: Draft, accepted_tokens: Tokens) -> None:
        """Score a draft against the decoded tokens. Positions beyond them stay unknown if all tokens matched."""
        tokens, level = draft[0], _level(draft[1])
        seen = min(len(tokens), len(accepted_tokens))
        if seen == 0:
            return
        differ = np.flatnonzero(tokens[:seen] != accepted_tokens[:seen])
        agreed = int(differ[0]) if len(differ) else seen
        known = len(tokens) if agreed < seen else seen
        self.hits[level, :known] *= _DECAY
        self.trials[level, :known] *= _DECAY
        self.hits[level, :agreed] += 1
        self.trials[level, :known] += 1


class DraftLength:
    """Chooses the length of one drafter's drafts; `token_cost` is the time of a verified token in plain steps."""

    def __init__(self, num_speculative_tokens: int, token_cost: float) -> None:
        self._k = num_speculative_tokens
        self._shared = Survival(num_speculative_tokens, prior=1.0)
        self._cost = 1.0 + token_cost * np.arange(1, num_speculative_tokens + 1)

    def start(self) -> Survival:
        """Create the counts of a request."""
        return Survival(self._k)

    def learn(self, request: Survival, draft: Draft, accepted_tokens: Tokens) -> None:
        """Score a full-length draft against the tokens that were decoded in its place."""
        self._shared.score(draft, accepted_tokens)
        request.score(draft, accepted_tokens)

    def choose(self, request: Survival, draft: Draft) -> tuple[int, float]:
        """Return (length with the most expected tokens per time, that number in a plain step's time); (0, 1) if none
        beats a step without drafted tokens."""
        length, level = len(draft[0]), _level(draft[1])
        if length == 0:
            return 0, 1.0
        shared = self._shared.hits[level, :length] / self._shared.trials[level, :length]
        # Survival of the request itself, shrunk towards that of all requests.
        survival = (request.hits[level, :length] + _SHRINK * shared) / (request.trials[level, :length] + _SHRINK)
        value = (1 + survival.cumsum()) / self._cost[:length]
        best = int(value.argmax())
        return (best + 1, float(value[best])) if value[best] > 1 else (0, 1.0)


def _level(confidence: float) -> int:
    return min(int(2 * confidence), LEVELS - 1)
