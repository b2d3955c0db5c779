"""Folds for cross-fitting: random ones, and ones that keep the requests of a source together."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.workloads import GENERATED

Folds = npt.NDArray[np.intp]


def source_groups(data: Matrix) -> tuple[str, ...]:
    """The source of each request; its task where the source is not known, or the generator."""
    known = ("" if source == GENERATED else source for source in data.sources or ("",) * len(data))
    return tuple(source or kind for source, kind in zip(known, data.kinds, strict=True))


def row_folds(n: int, folds: int, seed: int) -> Folds:
    """The fold [n] of every row, at random; equal sizes."""
    return np.asarray(np.random.default_rng(seed).permutation(n) % folds, np.intp)


def group_folds(groups: Sequence[str], folds: int, seed: int) -> Folds:
    """The fold [n] of every row, the same for all rows of a group; sizes as equal as groups allow.

    With fewer groups than `folds`, each group is a fold.
    """
    sizes = Counter(groups)
    names = sorted(sizes)
    order = np.random.default_rng(seed).permutation(len(names))
    filled, fold_of = [0] * min(folds, len(names)), {}
    for i in sorted(order, key=lambda i: -sizes[names[i]]):
        fold_of[names[i]] = fold = filled.index(min(filled))
        filled[fold] += sizes[names[i]]
    return np.asarray([fold_of[group] for group in groups], np.intp)
