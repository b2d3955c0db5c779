"""Ridge regression on contexts, shared by reward and acceptance models."""

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.logged_feedback import Floats


def ridge(
    z: npt.NDArray[np.float32] | Floats,
    arm: npt.NDArray[np.int64],
    y: Floats,
    otherwise: Floats,
    *,
    fewest: int,
    weight: Floats | None = None,
) -> Floats:
    """Ridge regression of y [n] on scaled z [n, d], by arm: coefficients, and the constant last [d + 1, arms].

    An arm with fewer than `fewest` rows gets the constant `otherwise` [arms]. `weight` [n]: of the rows.
    """
    from sklearn.linear_model import Ridge

    found = np.zeros((z.shape[1] + 1, len(otherwise)))
    found[-1] = otherwise
    for one in range(len(otherwise)):
        rows = arm == one
        if rows.sum() >= fewest:
            model = Ridge(alpha=z.shape[1]).fit(z[rows], y[rows], None if weight is None else weight[rows])
            found[:, one] = [*model.coef_, model.intercept_]
    return found


def predict(z: npt.NDArray[np.float32] | Floats, weights: Floats) -> Floats:
    """Predict from z [n, d] with the weights of `ridge`: [n, arms]."""
    return np.asarray(z @ weights[:-1] + weights[-1])
