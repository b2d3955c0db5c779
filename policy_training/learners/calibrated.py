"""`TauCost` that knows what it does not know: shrunk towards the mean of the tasks far from the training requests, and
with conformal intervals. Fits `draftpick.router.policies.calibrated`.

How much to shrink, how much wider intervals are, and the intervals themselves are fitted to requests that a model was
not trained on: some of known sources (random folds), others of sources that its training data lacks (folds of sources).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.folds import Folds, group_folds, row_folds, source_groups
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.data.reward import log_tau
from draftpick.policy_training.learners.base import Fit, Floats, Learner, LearnerSetting, contexts_of
from draftpick.policy_training.learners.tau_cost import TauCost
from draftpick.router import policies
from draftpick.router.features.lexical import stored_context
from draftpick.router.policies import regressors
from draftpick.router.policies.neighbourhood import Neighbourhood
from draftpick.router.policies.shapes import Arrays

_NEAREST = 8
_MIN_VARIANCE = 1e-4
_SHRINKAGES = (0.0, 0.25, 0.5, 0.75, 1.0)
_NOVELTIES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_FAR_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class _HeldOut:
    """A model and the requests that it was not trained on: `rows` [m], indices; `is_new`: their sources, too, were not
    in its training data. `steps`: its predicted steps per token, `prior`: their prior, both [m, arms]; `neighbours`:
    by gamma, [m]."""

    rows: npt.NDArray[np.intp]
    is_new: bool
    model: Fit
    arrays: Arrays
    steps: Floats
    prior: Floats
    neighbours: Mapping[float, Floats]


@dataclass(frozen=True, slots=True)
class Calibrated(Learner):
    """`coverage`: of the intervals shown; `confidences`: levels of the upper bound that decides: the one with the least
    total time is kept; `tolerance`: see the policy. `sharpness` and `prior_neighbours`: tried values of the kernel's
    gamma, relative to the distance of near requests, and of the weight of the prior."""

    model: TauCost = field(default_factory=lambda: TauCost(z=0.0))
    folds: int = 5
    coverage: float = 0.8
    confidences: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)
    tolerance: float = 0.03
    prototypes: int = 256
    sharpness: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    prior_neighbours: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

    def fit(self, data: Matrix, setting: LearnerSetting) -> Fit:
        model = self.model.fit(data, setting)
        z = _scaled(data, model)
        gammas = [sharpness / _near_distance(z) for sharpness in self.sharpness]
        held_out = list(self._held_out(data, setting, gammas))
        kernel = _fit_kernel(data, held_out, gammas, self.prior_neighbours)
        conformity = Conformity.measure(data, held_out, kernel)
        levels = [
            {"kernel": kernel, "conformal": conformity.quantiles(self.coverage, confidence)}
            for confidence in self.confidences
        ]
        options = {**model.options, "tolerance": self.tolerance}
        totals = [sum(_total_s(data, one, options, arrays) for one in held_out) for arrays in levels]
        best = int(np.argmin(totals))
        options |= {"coverage": self.coverage, "confidence": self.confidences[best]}
        return Fit(
            "calibrated", options, {**model.arrays, **_prototypes(data, z, self.prototypes, setting), **levels[best]}
        )

    def _held_out(self, data: Matrix, setting: LearnerSetting, gammas: Sequence[float]) -> Iterator[_HeldOut]:
        """Models of all folds. Without a second source, random folds stand for new sources, too."""
        by_source = group_folds(source_groups(data), self.folds, setting.seed)
        at_random = row_folds(len(data), self.folds, setting.seed)
        kinds: list[tuple[Folds, bool]] = [(at_random, by_source.max() == 0)]
        kinds += [(by_source, True)] if by_source.max() > 0 else []
        done, total = 0, sum(int(folds.max()) + 1 for folds, _ in kinds)
        for folds, is_new in kinds:
            for fold in range(int(folds.max()) + 1):
                rows = np.flatnonzero(folds == fold)
                train = data.select_rows(folds != fold)
                yield self._held_out_fold(train, data.select_rows(rows), rows, is_new, setting, gammas)
                setting.progress(done := done + 1, total)

    def _held_out_fold(
        self, train: Matrix, test: Matrix, rows: npt.NDArray[np.intp], is_new: bool, setting: LearnerSetting,
        gammas: Sequence[float],
    ) -> _HeldOut:  # fmt: skip
        model = self.model.fit(train, setting)
        arrays = _prototypes(train, _scaled(train, model), self.prototypes, setting)
        regressor = regressors.make(model.options["regressor"], model.arrays, len(train.arms))
        z, sampled = _scaled(test, model), test.temperatures > 0
        steps = np.exp(-np.stack([regressor(one, half)[0] for one, half in zip(z, sampled.tolist(), strict=True)]))
        neighbours = {gamma: _neighbours(arrays, gamma, z) for gamma in gammas}
        prior = arrays["prior"][sampled.astype(int)].astype(np.float64)
        return _HeldOut(rows, is_new, model, arrays, steps.astype(np.float64), prior, neighbours)


def _scaled(data: Matrix, model: Fit) -> npt.NDArray[np.float32]:
    """Contexts [n, d] scaled as the model scales them."""
    return np.asarray((contexts_of(data) - model.arrays["mean"]) / model.arrays["scale"], np.float32)


def _near_distance(z: npt.NDArray[np.float32]) -> float:
    """Median over requests of the squared distance to the eighth-nearest other one."""
    from sklearn.neighbors import NearestNeighbors

    k = min(_NEAREST, len(z) - 1)
    distances = NearestNeighbors(n_neighbors=k + 1).fit(z).kneighbors(z)[0][:, -1]
    return max(float(np.median(np.square(distances))), 1e-6)


def _prototypes(data: Matrix, z: npt.NDArray[np.float32], most: int, setting: LearnerSetting) -> Arrays:
    """The arrays that the policy keeps of its training requests: prototypes, and the prior."""
    from sklearn.cluster import MiniBatchKMeans

    k = min(most, len(z))
    found = MiniBatchKMeans(k, n_init=1, random_state=setting.seed, batch_size=1024).fit(z)
    counts = np.bincount(found.labels_, minlength=k)
    spreads = np.bincount(
        found.labels_, np.square(z - found.cluster_centers_[found.labels_]).sum(1), minlength=k
    ) / np.maximum(counts, 1)
    used = counts > 0
    arrays = {
        "prototypes": found.cluster_centers_[used],
        "prototype_counts": counts[used],
        "prototype_spreads": spreads[used],
        "prior": _prior(data),
    }
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}


def _prior(data: Matrix) -> Floats:
    """Mean steps per token [2, arms], greedy and sampled, over tasks: each counts once, whatever its requests."""
    steps, sampled, tasks = np.exp(-log_tau(data.acceptance_length)), data.temperatures > 0, np.asarray(data.kinds)
    rows = []
    for half in (False, True):
        mask = sampled == half if (sampled == half).any() else np.ones(len(data), bool)
        rows.append(np.mean([steps[mask & (tasks == task)].mean(0) for task in sorted(set(tasks[mask]))], axis=0))
    return np.asarray(rows)


def _neighbours(arrays: Arrays, gamma: float, z: npt.NDArray[np.float32]) -> Floats:
    kernel = np.asarray([gamma, 1.0, 0.0, 0.0, 0.0], np.float32)
    near = Neighbourhood({**arrays, "kernel": kernel}, z.shape[1])
    return np.asarray([near.neighbours(one) for one in z])


def _distance_weight(neighbours: Floats, prior_neighbours: float) -> Floats:
    return np.asarray(prior_neighbours / (prior_neighbours + neighbours))


def _log_errors(data: Matrix, one: _HeldOut, prior_weight: Floats) -> Floats:
    """Error of log steps per token, [m, arms]: measured less predicted."""
    steps = (1 - prior_weight[:, None]) * one.steps + prior_weight[:, None] * one.prior
    return np.asarray(-log_tau(data.acceptance_length[one.rows]) - np.log(steps))


def _fit_kernel(
    data: Matrix, held_out: Sequence[_HeldOut], gammas: Sequence[float], neighbours: Sequence[float]
) -> npt.NDArray[np.float32]:
    """The array `kernel`, of the greatest likelihood of the errors of arms with a drafter."""
    drafts = np.flatnonzero((data.acceptance_length > 1.0).any(0))
    if not len(drafts):
        drafts = np.arange(len(data.arms))
    best, least = (gammas[0], neighbours[0], 0.0, 0.0), np.inf
    for gamma, prior, shrinkage in product(gammas, neighbours, _SHRINKAGES):
        weights = [_distance_weight(one.neighbours[gamma], prior) for one in held_out]
        errors = [_log_errors(data, one, shrinkage * w)[:, drafts] for one, w in zip(held_out, weights, strict=True)]
        novelty, loss = _fit_novelty(np.concatenate(errors), np.concatenate(weights))
        if loss < least:
            best, least = (gamma, prior, shrinkage, novelty), loss
    known = np.concatenate([one.neighbours[best[0]] for one in held_out if not one.is_new] or [np.zeros(1)])
    return np.asarray([*best, np.quantile(known, _FAR_SHARE)], np.float32)


def _fit_novelty(errors: Floats, distance_weight: Floats) -> tuple[float, float]:
    """The novelty of the greatest likelihood of errors [m, arms], and minus its logarithm per error: errors are normal
    with variance `arm's (1 + novelty distance_weight)`."""
    best = (0.0, np.inf)
    for novelty in _NOVELTIES:
        inflation = 1.0 + novelty * distance_weight
        variances = np.maximum((np.square(errors) / inflation[:, None]).mean(0), _MIN_VARIANCE)
        loss = float(np.log(variances).mean() + np.log(inflation).mean()) / 2
        if loss < best[1]:
            best = (novelty, loss)
    return best


@dataclass(frozen=True, slots=True)
class Conformity:
    """Errors of log time per token of every arm against every default arm, over the inflation of their deviation.

    `errors` [m, default arms, arms], `sampled` [m], `sources` [m]: of requests whose sources the model did not know.
    """

    errors: Floats
    sampled: npt.NDArray[np.bool_]
    sources: npt.NDArray[np.str_]

    @classmethod
    def measure(cls, data: Matrix, held_out: Sequence[_HeldOut], kernel: npt.NDArray[np.float32]) -> "Conformity":
        gamma, prior, shrinkage, novelty = (float(x) for x in kernel[:4])
        new, found = [one for one in held_out if one.is_new], []
        for one in new:
            neighbours = next(near for g, near in one.neighbours.items() if np.isclose(g, gamma))
            weight = _distance_weight(neighbours, prior)
            error = _log_errors(data, one, shrinkage * weight) / np.sqrt(1.0 + novelty * weight)[:, None]
            found.append(error[:, None, :] - error[:, :, None])
        rows = np.concatenate([one.rows for one in new])
        return cls(np.concatenate(found), data.temperatures[rows] > 0, np.asarray(source_groups(data))[rows])

    def quantiles(self, coverage: float, confidence: float) -> npt.NDArray[np.float32]:
        """The array `conformal`: an interval of this coverage, and a bound with this confidence, for a request of a
        source that the calibration lacks."""
        tail = (1.0 - coverage) / 2
        levels = (tail, 1.0 - tail, confidence)
        return np.asarray([self._mode(half, levels) for half in (False, True)], np.float32)

    def _mode(self, half: bool, levels: Sequence[float]) -> Floats:
        mask = self.sampled == half if (self.sampled == half).any() else np.ones(len(self.sampled), bool)
        sizes = Counter(self.sources[mask].tolist())
        weights = np.asarray([1.0 / sizes[source] for source in self.sources[mask].tolist()]) / len(sizes)
        errors = self.errors[mask]
        order = errors.argsort(0)
        ordered, cumulated = np.take_along_axis(errors, order, 0), weights[order].cumsum(0)
        found = [_quantile(ordered, cumulated, level, len(sizes)) for level in levels]
        return np.stack(found, axis=-1)


def _quantile(ordered: Floats, cumulated: Floats, level: float, sources: int) -> Floats:
    """The quantile of errors in ascending order, with these cumulated weights, [m, ...], on the safe side.

    Each source has the same weight, and so has a new one, with an infinite error (Lee, Barber, Willett 2023, arXiv
    2306.06342).
    """
    more = (sources + 1) / sources
    if level < 0.5:
        at = (cumulated <= max(1.0 - (1.0 - level) * more, 0.0) + 1e-12).sum(0)
    else:
        at = (cumulated < min(level * more, 1.0) - 1e-12).sum(0)
    at = np.minimum(at, len(ordered) - 1)
    return np.asarray(np.take_along_axis(ordered, at[None], 0)[0])


def _total_s(data: Matrix, one: _HeldOut, options: Mapping[str, Any], arrays: Arrays) -> float:
    """Total seconds of the held-out requests on the arms that the policy chooses."""
    manifest = {"kind": "calibrated", "arms": list(data.arms), "featurizer": str(data.featurizer), "options": options}
    policy = policies.make({**manifest, "arrays_sha256": "0" * 64}, {**one.model.arrays, **one.arrays, **arrays})
    everywhere, total = np.ones(len(data.arms), bool), 0.0
    for row, vector in zip(one.rows, contexts_of(data)[one.rows], strict=True):
        probabilities = policy.probabilities(stored_context(vector, policy.featurizer or ""), everywhere)
        total += float(probabilities @ data.time_s[row])
    return total
