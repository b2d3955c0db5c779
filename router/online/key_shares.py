"""Bounds what one API key can do to what is learned for all: clients choose what they ask, and share the engines.

An answer weighs less, the more of the latest answers went to its key. A test of change that one key alone would decide
waits for others, as long as these get answers, too.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_SHARE = 0.5
"""Largest share of the weight that a key gets by many requests, while others have a share."""
MIN_WEIGHT = 0.05
"""Least weight of an answer while others get hardly any: a key with nearly all requests is still learned from."""
_FEW = 10.0
"""Answers of all other keys in about a minute, below which what they alone show is too little to learn from."""
MAX_EVIDENCE = 0.75
"""Largest share of the evidence needed for a finding that one key alone can give, while others are answered, too."""
_MEMORY_S = 60.0
_FORGOTTEN = 0.1


class KeyShares:
    """Answers by API key over about the last minute. `several`: whether more than one key has got answers in it.

    Time, not the number of answers, is the measure, so that no key can displace the others. Answers without a key (all
    requests have the same one) have full weight.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: dict[str, float] = {}
        self._counted_at = 0.0
        self.several = False

    def observe(self, key: str) -> float:
        """Count an answer of a key; returns its weight, in (0, 1]."""
        if not key:
            return 1.0
        now = self._clock()
        kept = math.exp((self._counted_at - now) / _MEMORY_S)
        self._counted_at = now
        counts = {one: kept * n for one, n in self._counts.items() if kept * n > _FORGOTTEN}
        counts[key] = own = counts.get(key, 0.0) + 1.0
        self._counts, self.several = counts, len(counts) > 1
        others = sum(counts.values()) - own
        if others < 1.0:
            return 1.0
        weight = others * MAX_SHARE / (1.0 - MAX_SHARE) / own
        return min(1.0, weight if others >= _FEW else max(weight, MIN_WEIGHT))


@dataclass(slots=True)
class KeyedEvidence:
    """A sum of evidence, and what each key has contributed to it."""

    sum: float = 0.0
    by_key: dict[str, float] = field(default_factory=dict)

    def add(self, key: str, amount: float) -> None:
        """Add the evidence of an answer."""
        self.sum += amount
        self.by_key[key] = self.by_key.get(key, 0.0) + amount

    def exceeds(self, needed: float, several: bool) -> bool:
        """True if there is more evidence than needed, with no more than `MAX_EVIDENCE` of that from one key if
        `several` are answered."""
        if not several or self.sum <= needed:
            return self.sum > needed
        most = MAX_EVIDENCE * needed
        return self.sum - sum(max(one - most, 0.0) for one in self.by_key.values()) > needed

    def clear(self) -> None:
        """Start again."""
        self.sum = 0.0
        self.by_key.clear()
