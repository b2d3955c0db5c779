"""Rewards, computed offline from outcomes; records do not contain them."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def seconds_saved(time_s: Floats, default: int) -> Floats:
    """Seconds saved by each arm against the default engine on each request; `time_s` [n, arms] gives [n, arms].

    Policies are evaluated by its mean: maximising it minimises total time.
    """
    return np.asarray(time_s[:, [default]] - time_s)


def relative_seconds_saved(time_s: Floats, default: int) -> Floats:
    """`seconds_saved` relative to the default engine's mean time, so that learning rates suit every machine."""
    return np.asarray(seconds_saved(time_s, default) / time_s[:, default].mean())


def log_tau(acceptance_length: Floats) -> Floats:
    """log of tau, 0 for an arm without a drafter; for acceptance lengths of any shape."""
    return np.asarray(np.log(np.maximum(acceptance_length, 1.0)))


def alignment_and_cost(alignment: Floats, speed: Floats, alpha: float) -> Floats:
    """The seed paper's reward `alpha * alignment + (1 - alpha) * cost` [n, arms] (arXiv 2408.08470).

    `alignment` [n, arms] in [0, 1]: similarity of the drafter's own answer to the target's; `speed` [arms] in [0, 1]:
    1 - draft time / target time. Raises ValueError for an alpha outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must be in [0, 1]")
    return np.asarray(alpha * alignment + (1 - alpha) * speed)
