"""Bounds the weight of one API key in data from records: clients choose what they ask, and share the engines."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from draftpick.policy_training.data.logged_feedback import Floats
from draftpick.router.online.key_shares import MAX_SHARE

_MIN_OTHERS = 50
"""Rows of other keys from which a key's share is known."""
_MIN_WEIGHT = 0.25
"""Least weight of a row: where one key sends nearly all requests, it is still what there is to learn from."""


def key_weights(keys: Sequence[str]) -> Floats:
    """Weights [n] in (0, 1] of rows in order of time, by the names of their keys: none has more than `MAX_SHARE` of the
    weight by many rows alone. A weight depends on earlier rows only."""
    found, counts = np.ones(len(keys)), Counter[str]()
    for row, key in enumerate(keys):
        counts[key] += 1
        if (others := row + 1 - counts[key]) >= _MIN_OTHERS:
            found[row] = min(1.0, max(others * MAX_SHARE / (1.0 - MAX_SHARE) / counts[key], _MIN_WEIGHT))
    return found
