"""The experiments of the benchmark report: each function answers one question about the data in plain numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.benchmark import splits as ladder
from draftpick.policy_training.benchmark.splits import Score, Split
from draftpick.policy_training.data.dataset import Dataset, DatasetError
from draftpick.policy_training.data.matrix import Matrix, each_answer, matrix
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.evaluation.evaluate import Evaluation, Interval, evaluate
from draftpick.policy_training.learners import LEARNERS, learner
from draftpick.policy_training.learners.base import LearnerSetting
from draftpick.policy_training.train import fitted, policy_probabilities
from draftpick.router.features.lexical import FEATURES

Floats = npt.NDArray[np.float64]
ProgressCallback = Callable[[], None]
"""Called after each fit."""
SIZES = (50, 100, 200, 400, 800, 1600, 3200, 6400, 10_000)
"""Sizes of a learning curve; sizes beyond the data are skipped."""
_MIN_ANSWERS = 4


@dataclass(frozen=True, slots=True)
class ExperimentSetup:
    """The data of all experiments: requests, the same requests reworded, and step costs under load.

    `more_training_data`: for the learning curve only; `training_domains`: see `LearnerSetting`.
    """

    data: Matrix
    costs: Costs
    default: str
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    reworded: Matrix | None = None
    costs_under_load: Costs | None = None
    more_training_data: Matrix | None = None
    training_domains: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    on_progress: ProgressCallback = lambda: None

    def setting(self, seed: int) -> LearnerSetting:
        return LearnerSetting(self.default, self.costs, seed, training_domains=self.training_domains)


def run_benchmark(
    question: ExperimentSetup, learners: Sequence[str] = LEARNERS
) -> dict[str, dict[str, dict[str, Interval]]]:
    """Scores by learner and split; mean over the seeds, with their range."""
    return {name: _splits(question, name) for name in learners}


def _splits(question: ExperimentSetup, name: str) -> dict[str, dict[str, Interval]]:
    found: dict[str, list[Score]] = {
        "iid": [],
        "source": [],
        "domain": [],
        "rewording": [],
        "own_words": [],
        "load": [],
    }
    for seed in question.seeds:
        setting = question.setting(seed)
        split = ladder.iid(question.data, seed)
        found["iid"].append(ladder.evaluate_learner(name, split, setting))
        if by_source := list(ladder.sources(question.data, seed)):
            found["source"].append(_over_splits(name, by_source, question, seed))
        found["domain"].append(_over_splits(name, list(ladder.domains(question.data)), question, seed))
        if question.reworded is not None:
            for one in ladder.rewording(question.data, question.reworded, seed):
                found[one.name].append(ladder.evaluate_learner(name, one, setting))
        if question.costs_under_load is not None:
            found["load"].append(_under_load(name, split, question.costs_under_load, setting))
        question.on_progress()
    return {split: _spread(scores) for split, scores in found.items() if scores}


def _over_splits(name: str, every: Sequence[Split], question: ExperimentSetup, seed: int) -> Score:
    """Score of the test data of all splits together, each by a policy and against the best arm of its training data."""
    routed, fixed, plain, oracle, worst = 0.0, 0.0, 0.0, 0.0, np.inf
    for split in every:
        policy = fitted(split.train, learner(name), question.setting(seed))
        time = (policy_probabilities(policy, split.test) * split.test.time_s).sum()
        best = int(split.train.time_s.sum(0).argmin())
        default = split.test.time_s[:, split.test.arms.index(question.default)].sum()
        routed, plain = routed + time, plain + default
        fixed, oracle = fixed + split.test.time_s[:, best].sum(), oracle + split.test.time_s.min(1).sum()
        worst = min(worst, default / time)
    return Score(
        vs_best_fixed=float(fixed / routed),
        vs_plain=float(plain / routed),
        share_of_oracle=float((fixed - routed) / (fixed - oracle)),
        oracle_vs_best_fixed=float(fixed / oracle),
        worst_domain_vs_plain=float(worst),
    )


def _under_load(name: str, split: Split, costs_under_load: Costs, setting: LearnerSetting) -> Score:
    """Score with times under load. A policy with costs gets the new ones; no policy is retrained."""
    test = split.test
    sampled = test.temperatures > 0
    seconds = costs_under_load.select(test.arms).time_s(
        test.acceptance_length, test.prompt_tokens, test.output_tokens, sampled
    )
    policy = fitted(split.train, learner(name), replace(setting, costs=costs_under_load))
    best_fixed = split.train.arms[int(split.train.time_s.sum(0).argmin())]
    return ladder.score(replace(test, time_s=seconds), policy_probabilities(policy, test), best_fixed, setting.default)


def _spread(scores: Sequence[Score]) -> dict[str, Interval]:
    rows = [asdict(score) for score in scores]
    return {name: interval([row[name] for row in rows]) for name in rows[0]}


def interval(values: Sequence[float]) -> Interval:
    """Mean and range; the range includes the mean despite rounding."""
    mean = float(np.mean(values))
    return Interval(mean, min(mean, *values), max(mean, *values))


def learning_curve(question: ExperimentSetup, name: str, sizes: Sequence[int]) -> dict[int, Interval]:
    """Share of the oracle's gain by number of training requests, evaluated on the other half."""
    curve = {}
    for size in sizes:
        shares = []
        for seed in question.seeds:
            split = ladder.iid(question.data, seed)
            train = split.train if question.more_training_data is None else split.train + question.more_training_data
            if size > len(train):
                continue
            rows = np.random.default_rng(seed).permutation(len(train))[:size]
            fewer = replace(split, train=train.select_rows(rows))
            shares.append(ladder.evaluate_learner(name, fewer, question.setting(seed)).share_of_oracle)
            question.on_progress()
        if shares:
            curve[size] = interval(shares)
    return curve


def answer_predictability(question: ExperimentSetup, data: Dataset, name: str) -> dict[str, Interval]:
    """Predictability of a sampled answer, from requests with several answers.

    Returns shares of the gain of the oracle that knows the answer: for an oracle that knows the other answers to the
    same request instead, and for the policy. Trained on the question's data, which must not contain these requests.
    """
    evaluation = question.data
    answers = [
        matrix(one, evaluation.arms, featurizer=evaluation.featurizer, costs=question.costs)
        for one in each_answer(data)
    ]
    if len(answers) < _MIN_ANSWERS:
        raise DatasetError(f"{len(answers)} answers per request are too few: at least {_MIN_ANSWERS} are needed")
    # An answer of one token has no TPOT; skip its request.
    usable = set.intersection(*(set(one.prompt_ids) for one in answers))
    answers = [one.select_rows(np.asarray([i in usable for i in one.prompt_ids])) for one in answers]
    times = np.stack([one.time_s for one in answers])
    best_fixed = int(evaluation.time_s.sum(0).argmin())
    room = times[:, :, best_fixed].sum() - times.min(2).sum()
    others = ((times.sum(0) - times) / (len(times) - 1)).argmin(2)
    informed = np.take_along_axis(times, others[:, :, None], 2).sum()
    shares = []
    for seed in question.seeds:
        policy = fitted(evaluation, learner(name), question.setting(seed))
        routed = (policy_probabilities(policy, answers[0]) * times).sum()
        shares.append(float((times[:, :, best_fixed].sum() - routed) / room))
        question.on_progress()
    other = float((times[:, :, best_fixed].sum() - informed) / room)
    return {"foresight/other_answers": interval([other]), "foresight/policy": interval(shares)}


def evaluation(question: ExperimentSetup, name: str) -> Evaluation:
    """The policy on held-out requests of the first seed: in all and by task, with intervals by source."""
    split = ladder.iid(question.data, question.seeds[0])
    policy = fitted(split.train, learner(name), question.setting(question.seeds[0]))
    question.on_progress()
    probabilities = policy_probabilities(policy, split.test)
    return evaluate(split.test, (probabilities * split.test.time_s).sum(1), probabilities, question.default)


def calibration(question: ExperimentSetup, name: str) -> tuple[Floats, Floats] | None:
    """Predicted and measured tau of every arm with a drafter, on held-out requests: two arrays [n * arms].

    None for a learner that does not predict tau.
    """
    split = ladder.iid(question.data, question.seeds[0])
    policy = fitted(split.train, learner(name), question.setting(question.seeds[0]))
    question.on_progress()
    assert split.test.contexts is not None
    predicted = policy.acceptance_lengths(split.test.contexts)
    if predicted is None:
        return None
    drafts = np.asarray([arm != question.default for arm in split.test.arms])
    return predicted[:, drafts].ravel(), split.test.acceptance_length[:, drafts].ravel()


def importance(question: ExperimentSetup, name: str) -> dict[str, float]:
    """Share of the policy's gain over the best fixed arm that is lost when a feature is permuted among requests."""
    split = ladder.iid(question.data, question.seeds[0])
    policy = fitted(split.train, learner(name), question.setting(question.seeds[0]))
    question.on_progress()
    test, rng = split.test, np.random.default_rng(question.seeds[0])
    assert test.contexts is not None
    embedded = test.contexts.shape[1] - len(FEATURES)
    columns: dict[str, Any] = {"embedding": slice(0, embedded)} | {f: embedded + i for i, f in enumerate(FEATURES)}
    fixed = test.time_s[:, int(split.train.time_s.sum(0).argmin())].sum()

    def gain(contexts: npt.NDArray[np.float32]) -> float:
        return float(fixed - (policy_probabilities(policy, replace(test, contexts=contexts)) * test.time_s).sum())

    whole = gain(test.contexts)
    lost = {}
    for feature, column in columns.items():
        shuffled = test.contexts.copy()
        shuffled[:, column] = shuffled[rng.permutation(len(test))][:, column]
        lost[feature] = (whole - gain(shuffled)) / whole if whole > 0 else 0.0
    return lost


def regret(question: ExperimentSetup, name: str) -> dict[str, Floats]:
    """Cumulative seconds lost to the oracle, by request: of the policy and of every fixed arm."""
    split = ladder.iid(question.data, question.seeds[0])
    policy = fitted(split.train, learner(name), question.setting(question.seeds[0]))
    question.on_progress()
    test = split.test
    order = np.random.default_rng(question.seeds[0]).permutation(len(test))
    oracle = test.time_s.min(1)
    times = dict(zip(test.arms, test.time_s.T, strict=True)) | {
        "policy": (policy_probabilities(policy, test) * test.time_s).sum(1)
    }
    return {arm: np.cumsum((seconds - oracle)[order]) for arm, seconds in times.items()}
