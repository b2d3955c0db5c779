"""Structured exploration, with known probabilities, of engines nearly as fast as the best one.

SquareCB (Foster, Rakhlin 2020, arXiv 2002.04926): `p_a = 1 / (arms + gamma * r_a)`, where r_a is the predicted excess
time of arm a relative to the best arm; the rest stays with the policy's choice. By the policy's predictions this costs
a request at most arms / gamma of its time, plus the floor of the arms that are predicted far slower.

While the level of an arm's times on this machine is not known, exploration is wide: of the arms that could win, the
same weighting gives each its share, scaled such that a request is expected to take at most `wide_cost` longer even if
every explored arm is slower than predicted by a standard deviation of its level.
"""

import math
from collections.abc import Sequence
from itertools import compress

from draftpick.router.config.sections import ExplorationConfig

_MIN_S = 1e-9
"""Avoids division by 0: an answer of one token takes 0 if the time to the first token is unknown."""
_WIDE_GAMMA, _BOUND = 10.0, 2.0


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


def apply_wide_exploration(
    probabilities: Sequence[float],
    eligible: Sequence[bool],
    seconds: Sequence[float],
    deviations: Sequence[float],
    config: ExplorationConfig,
) -> list[float] | None:
    """Move at most `wide_rate` of `probabilities` [arms] to `eligible` arms of unknown level that could be the fastest.

    `deviations` [arms]: standard deviations of the logarithmic levels of `seconds`; 0: the level is known. None if no
    such arm could win: its lower bound, two deviations below its prediction, is not below the choice's prediction.
    """
    choice = max(range(len(probabilities)), key=probabilities.__getitem__)
    choice_s, known = (
        max(seconds[choice], _MIN_S),
        [arm == choice or not deviations[arm] for arm in range(len(seconds))],
    )
    arms = [
        arm
        for arm, one in enumerate(eligible)
        if one and not known[arm] and seconds[arm] * math.exp(-_BOUND * deviations[arm]) < choice_s
    ]
    if not arms or not config.wide_rate:
        return None
    slower = [seconds[arm] / choice_s - 1.0 for arm in arms]
    weights = [1.0 / (len(arms) + 1 + _WIDE_GAMMA * max(one, 0.0)) for one in slower]
    upper = [max((one + 1.0) * math.exp(deviations[arm]) - 1.0, 0.0) for arm, one in zip(arms, slower, strict=True)]
    cost, total = sum(w * one for w, one in zip(weights, upper, strict=True)), sum(weights)
    scale = min(1.0, config.wide_rate / total, config.wide_cost / max(cost, _MIN_S))
    shares = [(1.0 - scale * total) * share for share in probabilities]
    for arm, weight in zip(arms, weights, strict=True):
        shares[arm] += scale * weight
    return shares
