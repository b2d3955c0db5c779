"""Rewards, computed offline from outcomes; records never hold them."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def seconds_saved(time_s: Floats, default: int) -> Floats:
    """Seconds that each arm saves against the default engine on each prompt; `time_s` [n, arms] gives [n, arms].

    Its mean is what a policy is judged by: maximising it minimises total time.
    """
    return np.asarray(time_s[:, [default]] - time_s)
