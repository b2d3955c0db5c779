"""Acceptance of one drafter's tokens by confidence and place in the draft: that of all requests, and one request's own.

A token is scored if all before it in its draft were accepted. So rates multiply to survival, S_i = P(the first i tokens
are accepted), whatever the drafts' lengths were (the product-limit estimate of Kaplan and Meier).
"""

import math
from collections.abc import Sequence

LEVELS = 16
"""Number of confidence levels of a drafted token."""
_PRIOR = 4.0
"""Weight of what is assumed of a level, in tokens."""
_MEMORY = 2000.0
"""Tokens of one level and place, of all requests, that count."""
_OWN_MEMORY = 0.94
"""What remains of a request's own scores after another step."""
_SHRINK, _ODDS_SHRINK = 4.0, 2.0
"""Weight of all requests in the estimate of one: of its gain, in steps; of its odds, in tokens of either kind."""
_SURPRISE = math.log(4)
"""Most that one token says for or against a forecast, as a logarithm of likelihoods."""
_PRICES = [0.1 * i for i in range(10)]
"""Prices of a verified token, in tokens, at which the worth of drafts is known."""


class Acceptance:
    """One drafter over all requests of one sampling mode; `prior(level)`: assumed acceptance rate by confidence."""

    def __init__(self, length: int, prior: Sequence[float]) -> None:
        self.length = length
        self.hits = [[_PRIOR * rate] * length for rate in prior]
        self.trials = [[_PRIOR] * length for _ in prior]
        # Of drafts as they were made: those shortened for lack of confidence, or not proposed, included.
        mean = sum(prior) / len(prior)
        self.drafts, self.gained = _PRIOR, _PRIOR * sum(mean**i for i in range(1, length + 1))
        self.tokens = _PRIOR * min(2, length)
        survival = [mean**i for i in range(1, length + 1)]
        self._worth = [_PRIOR * worth_of(survival, price) for price in _PRICES]
        self._worth_weight = _PRIOR

    def rate(self, level: int, place: int) -> float:
        """Return the acceptance rate of a token at `place` of a draft whose former tokens were accepted."""
        return self.hits[level][place] / self.trials[level][place]

    def mean_rate(self, place: int) -> float:
        """Return the acceptance rate of a token at `place` before its confidence is known."""
        place = min(place, self.length - 1)
        return sum(row[place] for row in self.hits) / sum(row[place] for row in self.trials)

    def gain(self) -> float:
        """Return the expected accepted tokens of a draft, before it is made."""
        return self.gained / self.drafts

    def drafted(self) -> float:
        """Return the expected length of a draft, before it is made."""
        return self.tokens / self.drafts

    def worth(self, price: float) -> float:
        """Return the expected `worth_of` a draft, before it is made, if a verified token costs `price` tokens."""
        at = min(price, _PRICES[-1]) * (len(_PRICES) - 1) / _PRICES[-1]
        low = min(int(at), len(_PRICES) - 2)
        found = self._worth[low] + (at - low) * (self._worth[low + 1] - self._worth[low])
        return found / self._worth_weight

    def note_draft(self, survival: Sequence[float]) -> None:
        """Learn how sure a draft was when it was made."""
        if self._worth_weight >= _MEMORY:
            scale = 1 - 1 / _MEMORY
            self._worth = [worth * scale for worth in self._worth]
            self._worth_weight *= scale
        self._worth = [worth + worth_of(survival, price) for worth, price in zip(self._worth, _PRICES, strict=True)]
        self._worth_weight += 1

    def score(self, level: int, place: int, hit: bool) -> None:
        """Learn whether a token was accepted."""
        trials, hits = self.trials[level], self.hits[level]
        if trials[place] >= _MEMORY:
            trials[place] -= 1
            hits[place] *= 1 - 1 / _MEMORY
        trials[place] += 1
        hits[place] += hit

    def score_draft(self, hits: float, tokens: float, weight: float) -> None:
        """Learn how many of a draft's tokens were accepted."""
        if self.drafts >= _MEMORY:
            scale = 1 - 1 / _MEMORY
            self.drafts, self.gained, self.tokens = self.drafts * scale, self.gained * scale, self.tokens * scale
        self.drafts += weight
        self.gained += weight * hits
        self.tokens += weight * tokens


class OwnAcceptance:
    """One drafter in one request, relative to all requests."""

    __slots__ = (
        "_doubt",
        "_expected",
        "_foreseen",
        "_foreseen_odds",
        "_gain_weight",
        "_gained",
        "_hits",
        "_place_hits",
        "_place_trials",
        "_trials",
        "scored",
        "shared",
    )

    def __init__(self, shared: Acceptance) -> None:
        self.shared = shared
        self._hits = self._expected = self._trials = self._gained = self._gain_weight = 0.0
        self._place_hits, self._place_trials = [0] * shared.length, [0] * shared.length
        self.scored = 0
        self._foreseen = [0.0] * 4
        self._foreseen_odds = 1.0
        self._doubt = 0.0

    def foresee(self, tau: float, weight: float) -> None:
        """Start from a forecast of the acceptance length of full drafts, as if from `weight` scored steps; fewer, the
        less likely it makes what comes."""
        usual = _rate_of(1 + self._mean_survival(), self.shared.length)
        foreseen = _rate_of(tau, self.shared.length)
        ratio = (tau - 1) / max(1e-6, self._mean_survival())
        gain = self.shared.gain() * min(ratio, self.shared.length / max(1e-6, self.shared.gain()))
        self._foreseen = [weight, weight * foreseen, weight * usual, weight * gain]
        self._foreseen_odds = (foreseen + 0.02) / (1.02 - foreseen) * (1.02 - usual) / (usual + 0.02)

    def _check_forecast(self, level: int, place: int, hit: bool) -> None:
        """Doubt the forecast if it makes a token's fate less likely than all requests do."""
        if self._foreseen[0]:
            usual = 1 + self.shared.rate(level, place) * (self._foreseen_odds - 1)
            likelier = math.log((self._foreseen_odds if hit else 1.0) / usual)
            self._doubt = max(0.0, self._doubt - min(_SURPRISE, max(-_SURPRISE, likelier)))

    def _belief(self) -> list[float]:
        """Return what the forecast adds to (trials, hits, expected hits, gained tokens)."""
        return [value * math.exp(-self._doubt) for value in self._foreseen] if self._doubt else self._foreseen

    def score(self, draft: Sequence[int], levels: Sequence[int], came: Sequence[int]) -> int:
        """Learn from a draft and the tokens that came in its place; return how many were accepted."""
        shared = self.shared
        self._hits *= _OWN_MEMORY
        self._expected *= _OWN_MEMORY
        self._trials *= _OWN_MEMORY
        self._foreseen = [value * _OWN_MEMORY for value in self._foreseen]
        hits = 0
        for place, (token, level, actual) in enumerate(zip(draft, levels, came, strict=False)):
            hit = token == actual
            self._check_forecast(level, place, hit)
            self._expected += shared.rate(level, place)
            self._hits += hit
            self._trials += 1
            self._place_trials[place] += 1
            self._place_hits[place] += hit
            shared.score(level, place, hit)
            if not hit:
                break
            hits += 1
        shared.score_draft(hits, len(draft), self._novelty())
        self.scored += 1
        self._gained = self._gained * _OWN_MEMORY + hits
        self._gain_weight = self._gain_weight * _OWN_MEMORY + 1
        return hits

    def score_first(self, levels: Sequence[int], hits: Sequence[bool]) -> None:
        """Learn from one-token drafts at places of the text where nothing was proposed."""
        shared = self.shared
        for level, hit in zip(levels, hits, strict=True):
            shared.note_draft(self._survival_from(level))
            self._check_forecast(level, 0, hit)
            self._foreseen = [value * _OWN_MEMORY for value in self._foreseen]
            self._hits = self._hits * _OWN_MEMORY + hit
            self._expected = self._expected * _OWN_MEMORY + shared.rate(level, 0)
            self._trials = self._trials * _OWN_MEMORY + 1
            self._place_trials[0] += 1
            self._place_hits[0] += hit
            shared.score(level, 0, hit)
        first = max(0.05, shared.mean_rate(0))
        weight = min(len(hits), 8)
        gained = min(shared.length, shared.gain() * (sum(hits) / len(hits)) / first)
        shared.score_draft(gained, shared.drafted(), weight * self._novelty())
        self.scored += len(hits)
        self._gained = self._gained * _OWN_MEMORY**weight + weight * gained
        self._gain_weight = self._gain_weight * _OWN_MEMORY**weight + weight

    def odds(self) -> float:
        """Return this request's odds of acceptance over those of all requests at the same confidence."""
        more_trials, more_hits, more_expected, _ = self._belief()
        trials, hits, expected = self._trials + more_trials, self._hits + more_hits, self._expected + more_expected
        own = (hits + _ODDS_SHRINK) / (trials - hits + _ODDS_SHRINK)
        return own * (trials - expected + _ODDS_SHRINK) / (expected + _ODDS_SHRINK)

    def rate(self, odds: float, level: int, place: int) -> float:
        """Return the acceptance rate of a token in this request; `odds` as above."""
        usual = self.shared.rate(level, place)
        return usual * odds / (1 - usual + usual * odds)

    def gain(self) -> float:
        """Return the expected accepted tokens of a draft, before it is made."""
        usual = self.shared.gain()
        weight, _, _, gained = self._belief()
        return (self._gained + gained + _SHRINK * usual) / (self._gain_weight + weight + _SHRINK)

    def survival(self, levels: Sequence[int]) -> list[float]:
        """Return S_1, S_2, ... of drafted tokens of these confidences."""
        odds, reached, found = self.odds(), 1.0, []
        for place, level in enumerate(levels):
            reached *= self.rate(odds, level, place)
            found.append(reached)
        return found

    def _survival_from(self, level: int) -> list[float]:
        """Return the survival of a full draft whose first token is of this level, the others unknown."""
        reached = self.rate(self.odds(), level, 0)
        found = [reached]
        for place in range(1, self.shared.length):
            reached *= self.shared.mean_rate(place)
            found.append(reached)
        return found

    def tau(self) -> float | None:
        """Return the acceptance length of full drafts by this request's scores, None without any."""
        if not self.scored:
            return None
        reached, total = 1.0, 1.0
        for place, (hits, trials) in enumerate(zip(self._place_hits, self._place_trials, strict=True)):
            reached *= (hits + self.shared.mean_rate(place)) / (trials + 1)
            total += reached
        return total

    def _novelty(self) -> float:
        """Weight of a score in the mean of all requests: one that drafts often must not stand for those that left."""
        return _SHRINK / (_SHRINK + self.scored)

    def _mean_survival(self) -> float:
        reached, total = 1.0, 0.0
        for place in range(self.shared.length):
            reached *= self.shared.mean_rate(place)
            total += reached
        return total


def worth_of(survival: Sequence[float], price: float) -> float:
    """Return the expected accepted tokens of a draft beyond what their verification costs."""
    return sum(reached - price for reached in survival if reached > price)


def level_of_probability(probability: float) -> int:
    """Return the level of a drafted token's own probability."""
    return min(int(probability * LEVELS), LEVELS - 1)


def level_of_score(score: float) -> int:
    """Return the level of a model-free drafter's confidence: its expected accepted tokens, or its match's length."""
    return min(int(2 * score), LEVELS - 1)


def _rate_of(tau: float, length: int) -> float:
    """Return the acceptance rate that gives this acceptance length to drafts of `length`."""
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        if sum(middle**i for i in range(length + 1)) < tau:
            low = middle
        else:
            high = middle
    return high
