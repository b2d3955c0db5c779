"""What holds at every look: a gambler bets on numbers that a claim says to have no positive mean.

Where the claim is true, no strategy ever multiplies the stake by 1 / alpha with more than probability alpha (Ville
1939; Waudby-Smith, Ramdas 2020, arXiv 2010.09686). So a claim may be given up at that moment, however often one looks.
"""

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_BETS = np.asarray([0.05, 0.1, 0.2, 0.4, 0.7, 0.95])
_SHARES = np.log(_BETS / _BETS.sum())
"""Of the stake that each bet begins with: where numbers are far from their least, only the high ones earn in time."""
_HALVINGS = 12


def log_wealth(x: Floats) -> float:
    """The highest logarithm that the stake of all bets on x > 0 ever had; x [n] in order of time, at least -1."""
    logs = np.log1p(np.outer(_BETS, x)).cumsum(1) + _SHARES[:, None]
    top = logs.max(0)
    return float((top + np.log(np.exp(logs - top).sum(0))).max(initial=0.0))


def p_value(x: Floats, max_below: Floats | float) -> float:
    """Of the claim that x [n], in order of time, has no positive mean; x is at least `-least`, which is above 0."""
    return math.exp(-log_wealth(x / max_below))


def confidence_bounds(x: Floats, max_below: Floats, max_above: Floats, alpha: float) -> tuple[float, float]:
    """Bounds of the mean of x [n], in [-1, 1], that hold at all n at once with probability 1 - alpha.

    x in order of time, between `-least` and `most` [n], each known before its x. Infinite: nothing is known yet.
    """
    return _lower_bound(x, max_below, alpha / 2), -_lower_bound(-x, max_above, alpha / 2)


def _lower_bound(x: Floats, max_below: Floats, alpha: float) -> float:
    """The highest mean from -1 on that the stake has refuted; the stake falls with the mean that it bets against."""
    needed, low, high = math.log(1.0 / alpha), -1.0, 1.0
    if _log_wealth_against(low, x, max_below) < needed:
        return -math.inf
    for _ in range(_HALVINGS):
        mean = (low + high) / 2
        low, high = (mean, high) if _log_wealth_against(mean, x, max_below) >= needed else (low, mean)
    return low


def _log_wealth_against(mean: float, x: Floats, max_below: Floats) -> float:
    return log_wealth((x - mean) / (max_below + max(mean, 0.0)))
