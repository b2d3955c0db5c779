"""Gates on unseen requests: the same tasks in other words, and leave-one-domain-out.

Both retrain the same learner without the requests under evaluation, and evaluate that policy's choices.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.dataset import Dataset, DatasetError
from draftpick.policy_training.data.matrix import Floats, Matrix, matrix
from draftpick.policy_training.evaluation.bootstrap import Bootstrap, bounds
from draftpick.policy_training.learners.base import FeatureScaling, contexts_of
from draftpick.policy_training.retraining.gates.base import MARGIN, MIN_PAIRED, Check, NotMade
from draftpick.policy_training.train import policy_probabilities
from draftpick.router.policies.base import Policy

MIN_KEPT_GAIN = 0.95
"""Minimum share of the saving that must remain after rewording."""
DOMAINS = 5
"""Number of clusters in records, which have no tasks."""
_MIN_DOMAINS = 3
_RESAMPLES, _SURE = 2000, 0.05
Fit = Callable[[Matrix], Policy]
Labels = npt.NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class RefitInputs:
    """The candidate's training data `learned`, its records `data`, and `fit`, which refits the same learner.

    `base`: its measured or replayed requests; `reworded`: some of them in other words. `default`: an arm.
    `on_progress`: called with the current operation.
    """

    learned: Matrix
    data: Dataset
    default: str
    fit: Fit
    seed: int = 0
    base: Matrix | None = None
    reworded: Matrix | None = None
    on_progress: Callable[[str], None] = lambda what: None


def rewording(inputs: RefitInputs) -> Check | NotMade:
    """Does the gain survive rewording? See `rewording_checks`."""
    if inputs.reworded is None or inputs.base is None:
        return NotMade("no --paraphrased-data was given with the --data of the same prompts")
    inputs.on_progress("evaluating reworded requests")
    return rewording_checks(inputs.learned, inputs.base, inputs.reworded, inputs.default, inputs.fit)


def left_out_domain(inputs: RefitInputs) -> Check | NotMade:
    """Is an unseen domain served well? See `leave_domain_out_checks`."""
    learned, base = inputs.learned, inputs.base
    try:
        domains = (
            domains_from_tasks(learned, base)
            if base is not None
            else domains_from_records(learned, inputs.data, inputs.seed)
        )
        return leave_domain_out_checks(learned, domains, inputs.fit, lambda name: inputs.on_progress(f"without {name}"))
    except DatasetError as error:
        return NotMade(str(error))


@dataclass(frozen=True, slots=True)
class Domains:
    """Evaluation requests with all times, and domains [n]: `labels` of these, `training` of the training data."""

    evaluation: Matrix
    labels: Labels
    training: Labels

    def __iter__(self) -> Iterator[tuple[str, Matrix, npt.NDArray[np.bool_]]]:
        """Each domain with enough requests: its name, its requests, and the mask of the training data without it."""
        for name in np.unique(self.labels).tolist():
            mine = self.labels == name
            if mine.sum() >= MIN_PAIRED:
                yield name, self.evaluation.select_rows(mine), self.training != name


def domains_from_tasks(learned: Matrix, evaluation: Matrix) -> Domains:
    """The tasks of measured or replayed requests; training requests of other tasks get the nearest task.

    Nearest by task means, in scaled contexts.
    """
    scaling, labels = FeatureScaling.from_contexts(contexts_of(learned)), np.asarray(evaluation.kinds)
    of_judged, names = scaling(contexts_of(evaluation)), np.unique(labels)
    centres = np.stack([of_judged[labels == name].mean(0) for name in names])
    near = names[_nearest_centres(scaling(contexts_of(learned)), centres)]
    known = dict(zip(evaluation.prompt_ids, evaluation.kinds, strict=True))
    trained = [known.get(id, str(one)) for id, one in zip(learned.prompt_ids, near, strict=True)]
    return Domains(evaluation, labels, np.asarray(trained))


def domains_from_records(learned: Matrix, data: Dataset, seed: int) -> Domains:
    """Clusters of the training contexts; evaluated on records with the times of all arms from shadows.

    Raises `DatasetError` without any.
    """
    from sklearn.cluster import KMeans

    evaluation = matrix(data, learned.arms, featurizer=learned.featurizer)
    scaling = FeatureScaling.from_contexts(contexts_of(learned))
    z = scaling(contexts_of(learned))
    found = KMeans(min(DOMAINS, len(z)), n_init=1, random_state=seed).fit(z)
    names = np.asarray([f"cluster-{i}" for i in range(found.n_clusters)])
    near = _nearest_centres(scaling(contexts_of(evaluation)), found.cluster_centers_)
    return Domains(evaluation, names[near], names[found.labels_])


def _nearest_centres(z: npt.NDArray[np.float32], centres: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    return np.asarray(np.square(z[:, None, :] - centres).sum(2).argmin(1))


def rewording_checks(learned: Matrix, own: Matrix, reworded: Matrix, default: str, fit: Fit) -> Check:
    """Check that the gain survives rewording. `own` has the same requests, by id, in their original words.

    It fails if less than 95 % of the gain is left and the loss is significant (95 %). Raises `DatasetError` if the two
    have too few requests in common.
    """
    ids = {id: i for i, id in enumerate(own.prompt_ids)}
    other = reworded.select_rows(np.asarray([id in ids for id in reworded.prompt_ids]))
    if len(other) < MIN_PAIRED:
        raise DatasetError(
            f"{len(other)} reworded requests have an original in the other data: {MIN_PAIRED} are needed"
        )
    first = replace(other, contexts=contexts_of(own)[[ids[id] for id in other.prompt_ids]])
    evaluated_ids = set(other.prompt_ids)
    policy = fit(learned.select_rows(np.asarray([id not in evaluated_ids for id in learned.prompt_ids])))
    before, after = ((policy_probabilities(policy, data) * other.time_s).sum(1) for data in (first, other))
    base = other.time_s[:, other.arms.index(default)]
    saved, left = (float(1.0 - times.sum() / base.sum()) for times in (before, after))
    low, high = _interval((after - before), base, _SURE)
    why = f"saves {left:.1%} against {default} reworded, {saved:.1%} as in the original: {low:.1%} to {high:.1%} less"
    kept = left / saved if saved > 0.0 else float("nan")
    return Check("rewording", not (left < MIN_KEPT_GAIN * saved and low > 0.0), kept, MIN_KEPT_GAIN, why)


def leave_domain_out_checks(
    learned: Matrix, domains: Domains, fit: Fit, on_progress: Callable[[str], None] = lambda name: None
) -> Check:
    """Check that an unseen domain is served no slower than by the best engine of the seen ones.

    It fails if a domain is over 2 % slower, and that is significant (95 % for all domains together). Raises
    `DatasetError` if fewer than three domains have enough requests.
    """
    parts = list(domains)
    if len(parts) < _MIN_DOMAINS:
        few = f"{len(parts)} domains have {MIN_PAIRED} requests with the times of all arms"
        raise DatasetError(f"{few}: {_MIN_DOMAINS} must")
    worst, why = 0.0, "no domain is slower than with the best engine of the others"
    for name, requests, rest in parts:
        training = learned.select_rows(rest)
        policy, fixed = fit(training), int(training.time_s.sum(0).argmin())
        ours, theirs = (policy_probabilities(policy, requests) * requests.time_s).sum(1), requests.time_s[:, fixed]
        excess = float(ours.sum() / theirs.sum() - 1.0)
        least, most = _interval(ours - theirs, theirs, _SURE / len(parts))
        if least > 0.0 and excess > worst:
            worst = excess
            why = f"{name}: {excess:.1%} slower than {training.arms[fixed]} alone ({least:.1%} to {most:.1%})"
        on_progress(name)
    return Check("left_out_domain", worst <= MARGIN, worst, MARGIN, f"{why}; {len(parts)} domains left out in turn")


def _interval(a: Floats, b: Floats, alpha: float) -> tuple[float, float]:
    """Bounds of sum(a) / sum(b), each with probability 1 - alpha: a bootstrap over requests."""
    low, high = bounds(Bootstrap.of_places(len(a), _RESAMPLES, np.random.default_rng(0)).ratios(a, b), 2 * alpha)
    return float(low), float(high)
