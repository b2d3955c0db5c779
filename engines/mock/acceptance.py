"""Acceptance of a mock drafter's tokens."""

from functools import lru_cache


@lru_cache(maxsize=256)
def acceptance_rate(tau: float, num_speculative_tokens: int) -> float:
    """Probability p that a drafted token is accepted after its predecessors: solves p + p^2 + ... + p^k = tau - 1."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        short = sum(middle**i for i in range(1, num_speculative_tokens + 1)) < tau - 1
        low, high = (middle, high) if short else (low, middle)
    return high if tau > 1 else 0.0
