"""Slices of requests: the tasks in the data, or clusters of contexts."""

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.learners.base import FeatureScaling, contexts_of
from draftpick.router.features.lexical import FEATURES

_MAX_SLICES = 8
_MIN_EACH = 40
_TELLING = 0.5
"""Minimum deviations above the overall mean for a feature to characterise a cluster."""


def find_slices(data: Matrix, seed: int = 0) -> dict[str, npt.NDArray[np.bool_]]:
    """Masks [n] by name. A cluster is named after the features above the mean in it."""
    if len(set(data.kinds)) > 1:
        return {kind: np.asarray([one == kind for one in data.kinds]) for kind in sorted(set(data.kinds))}
    number = min(_MAX_SLICES, len(data) // _MIN_EACH)
    if number < 2:
        return {}
    from sklearn.cluster import KMeans

    contexts = contexts_of(data)
    z = FeatureScaling.from_contexts(contexts)(contexts)
    labels = KMeans(number, n_init=4, random_state=seed).fit(z).labels_
    return {f"cluster {i + 1}{_named(contexts, labels == i)}": labels == i for i in range(number)}


def _named(contexts: npt.NDArray[np.float32], mine: npt.NDArray[np.bool_]) -> str:
    """The two most characteristic features of these requests, if any; contexts end with them."""
    lexical = contexts[:, -len(FEATURES) :].astype(np.float64)
    if lexical.shape[1] < len(FEATURES):
        return ""
    above = (lexical[mine].mean(0) - lexical.mean(0)) / (lexical.std(0) + 1e-9)
    names = [FEATURES[i] for i in np.argsort(-above)[:2] if above[i] > _TELLING]
    return f" ({', '.join(names)})" if names else ""
