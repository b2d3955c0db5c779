"""A small policy on disk."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from draftpick.router.policies import artifact


def write_policy(path: Path, arms: Sequence[str] = ("plain", "ngram"), dimension: int = 3) -> Path:
    """Write an untrained `mlp` policy for `arms` to `path`; returns `path`."""
    sizes = (dimension, 4, 4, len(arms))
    arrays = {"mean": np.zeros(dimension, np.float32), "scale": np.ones(dimension, np.float32)}
    for i in range(1, len(sizes)):
        arrays[f"w{i}"] = np.zeros((sizes[i - 1], sizes[i]), np.float32)
        arrays[f"b{i}"] = np.zeros(sizes[i], np.float32)
    artifact.write(path, {"kind": "mlp", "arms": list(arms), "featurizer": "features", "options": {}}, arrays)
    return path
