"""Rewards, computed offline from outcomes; records never hold them."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def seconds_saved(time_s: Floats, default: int) -> Floats:
    """Seconds that each arm saves against the default engine on each request; `time_s` [n, arms] gives [n, arms].

    Its mean is what a policy is judged by: maximising it minimises total time.
    """
    return np.asarray(time_s[:, [default]] - time_s)


def relative_seconds_saved(time_s: Floats, default: int) -> Floats:
    """The same in shares of the default engine's mean time, so that a learner's rates fit every machine."""
    return np.asarray(seconds_saved(time_s, default) / time_s[:, default].mean())


def log_tau(acceptance_length: Floats) -> Floats:
    """log of tau, 0 for an arm that drafts nothing; of acceptance lengths of any shape."""
    return np.asarray(np.log(np.maximum(acceptance_length, 1.0)))


def alignment_and_cost(alignment: Floats, speed: Floats, alpha: float) -> Floats:
    """The seed paper's reward `alpha * alignment + (1 - alpha) * cost` [n, arms] (arXiv 2408.08470).

    `alignment` [n, arms] in [0, 1] likens the drafter's own answer to the target's; `speed` [arms] in [0, 1] grows with
    the drafter's speed: 1 - draft time / target time. Raises ValueError for an alpha outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must be from 0 to 1")
    return np.asarray(alpha * alignment + (1 - alpha) * speed)
