"""Structured exploration: some requests go to engines that are nearly as fast as the best, and it is known how likely.

SquareCB (Foster, Rakhlin 2020, arXiv 2002.04926): `p_a = 1 / (arms + gamma * r_a)`, where r_a is the share of the
best arm's time that arm a would take longer; the rest stays with the policy's own choice. By what the policy predicts
it costs a request at most arms / gamma of its time, and beside that the floor of the arms that seem far slower.
"""

from collections.abc import Sequence
from itertools import compress

from draftpick.router.config.sections import ExplorationConfig

_MIN_S = 1e-9
"""A time of 0 is possible: of a single token, where nothing is known of the time to the first one."""


def apply_exploration(
    probabilities: Sequence[float],
    eligible: Sequence[bool],
    seconds: Sequence[float] | None,
    budget: float,
    config: ExplorationConfig,
) -> list[float]:
    """`probabilities` [arms] with at most `budget` of them moved to other arms that `eligible` be chosen.

    `seconds` [arms]: what the policy predicts; None: `budget` is drawn from all alike.
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
