"""Structured exploration, with known probabilities, of engines nearly as fast as the best one.

SquareCB (Foster, Rakhlin 2020, arXiv 2002.04926): `p_a = 1 / (arms + gamma * r_a)`, where r_a is the predicted excess
time of arm a relative to the best arm; the rest stays with the policy's choice. By the policy's predictions this costs
a request at most arms / gamma of its time, plus the floor of the arms that are predicted far slower.
"""

from collections.abc import Sequence
from itertools import compress

from draftpick.router.config.sections import ExplorationConfig

_MIN_S = 1e-9
"""Avoids division by 0: an answer of one token takes 0 if the time to the first token is unknown."""


def apply_exploration(
    probabilities: Sequence[float],
    eligible: Sequence[bool],
    seconds: Sequence[float] | None,
    budget: float,
    config: ExplorationConfig,
) -> list[float]:
    """Move at most `budget` of `probabilities` [arms] to other `eligible` arms.

    `seconds` [arms]: the policy's predictions; None: explore uniformly.
    """
    if seconds is None:
        alike = budget / sum(eligible)
        return [(1 - budget) * share + alike * one for share, one in zip(probabilities, eligible, strict=True)]
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    least, arms = min(compress(seconds, eligible)), sum(eligible)
    unit = max(least, _MIN_S)
    floor = min(config.min_probability, budget / max(arms - 1, 1))
    more = [0.0] * len(probabilities)
    for arm, one in enumerate(eligible):
        slower = (seconds[arm] - least) / unit
        if one and arm != best and slower <= config.max_slowdown:
            more[arm] = max(1.0 / (arms + config.gamma * slower) - floor, 0.0)
    left, total = budget - floor * (arms - 1), sum(more)
    scale = min(1.0, left / total) if total else 0.0
    moved = [
        (floor + scale * x) if one and arm != best else 0.0
        for arm, (one, x) in enumerate(zip(eligible, more, strict=True))
    ]
    kept = 1.0 - sum(moved)
    return [kept * share + x for share, x in zip(probabilities, moved, strict=True)]
