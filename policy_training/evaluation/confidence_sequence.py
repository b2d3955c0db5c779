"""Anytime-valid tests by betting: wealth against H0: mean <= 0.

Under H0 no strategy reaches a wealth of 1 / alpha with more than probability alpha (Ville 1939; Waudby-Smith, Ramdas
2020, arXiv 2010.09686). So H0 may be rejected at that moment, however often one tests.
"""

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_BETS = np.asarray([0.05, 0.1, 0.2, 0.4, 0.7, 0.95])
_SHARES = np.log(_BETS / _BETS.sum())
"""Share of the initial wealth per bet; if values stay far from their minimum, only the high bets grow in time."""
_HALVINGS = 12


def log_wealth(x: Floats) -> float:
    """Maximum log wealth over time of the bets on x > 0; x [n] in order of time, at least -1."""
    logs = np.log1p(np.outer(_BETS, x)).cumsum(1) + _SHARES[:, None]
    top = logs.max(0)
    return float((top + np.log(np.exp(logs - top).sum(0))).max(initial=0.0))


def p_value(x: Floats, max_below: Floats | float) -> float:
    """p-value of H0: x [n], in order of time, has no positive mean; x is at least `-max_below` < 0."""
    return math.exp(-log_wealth(x / max_below))


def confidence_bounds(x: Floats, max_below: Floats, max_above: Floats, alpha: float) -> tuple[float, float]:
    """Bounds of the mean of x [n], in [-1, 1], simultaneously valid for all n with probability 1 - alpha.

    x in order of time, between `-max_below` and `max_above` [n], each known before its x. Infinite without data.
    """
    return _lower_bound(x, max_below, alpha / 2), -_lower_bound(-x, max_above, alpha / 2)


def _lower_bound(x: Floats, max_below: Floats, alpha: float) -> float:
    """The highest rejected mean from -1 on; wealth decreases with the mean of H0."""
    needed, low, high = math.log(1.0 / alpha), -1.0, 1.0
    if _log_wealth_against(low, x, max_below) < needed:
        return -math.inf
    for _ in range(_HALVINGS):
        mean = (low + high) / 2
        low, high = (mean, high) if _log_wealth_against(mean, x, max_below) >= needed else (low, mean)
    return low


def _log_wealth_against(mean: float, x: Floats, max_below: Floats) -> float:
    return log_wealth((x - mean) / (max_below + max(mean, 0.0)))
