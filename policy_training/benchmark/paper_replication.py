"""Experiments on the seed paper's claims with our engines (arXiv 2408.08470).

Its reward is `alpha * alignment + (1 - alpha) * cost` over each drafter's standalone answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from draftpick.policy_training.benchmark import splits as ladder
from draftpick.policy_training.benchmark.experiments import ExperimentSetup, interval
from draftpick.policy_training.data.dataset import Dataset, DatasetError
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.data.reward import alignment_and_cost
from draftpick.policy_training.data.text_similarity import STATISTICS
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.learners import learner
from draftpick.policy_training.learners.networks import fit_softmax
from draftpick.policy_training.learners.policy_gradient import ExactGradient
from draftpick.policy_training.train import fitted, policy_probabilities
from draftpick.router import policies

Floats = npt.NDArray[np.float64]
ALPHAS = tuple(i / 8 for i in range(9))
_ENTROPY = 0.05


@dataclass(frozen=True, slots=True)
class Alpha:
    """The paper's policy at one alpha: mean alignment and speed of the chosen drafters, and total time.

    `alignment` and `speed` are NaN if no drafter is chosen.
    """

    alpha: float
    alignment: float
    speed: float
    vs_best_fixed: float
    vs_plain: float
    share_of_none: float


def alignments(data: Dataset, matrix: Matrix, default: str) -> dict[str, Floats]:
    """Each statistic [n, arms] of the matrix's requests; the arm without a drafter is perfectly aligned.

    NaN for requests without alignments: sampled answers have no greedy one to compare with.
    """
    found = {name: np.full(matrix.time_s.shape, np.nan) for name in STATISTICS}
    place = {prompt_id: i for i, prompt_id in enumerate(matrix.prompt_ids)}
    for m in data.measurements:
        if m.alignment and m.prompt_id in place and m.label in matrix.arms:
            for name in STATISTICS:
                found[name][place[m.prompt_id], matrix.arms.index(m.label)] = m.alignment[name]
    for values in found.values():
        known = ~np.isnan(values).all(1)
        values[known, matrix.arms.index(default)] = 1.0
    if all(np.isnan(values).all() for values in found.values()):
        raise DatasetError("no request has standalone answers of the drafters: label with --standalone-tokens")
    return found


def sweep(question: ExperimentSetup, alignment: Floats) -> list[Alpha]:
    """The paper's policy at every alpha, on requests with known alignment [n, arms].

    The cost of a drafter is 1 minus the time it adds to a step of the target. The arm without a drafter is its own
    target and would always win: its reward is the constant that minimises total time on the training half.
    """
    known = np.flatnonzero(~np.isnan(alignment).any(1))
    data, likeness = question.data.select_rows(known), alignment[known]
    step_s = question.costs.select(data.arms).step_s[:, 0]
    speed = np.clip(2 - step_s / step_s[data.arms.index(question.default)], 0, 1)
    found = []
    for alpha in ALPHAS:
        reward = alignment_and_cost(likeness, speed, alpha)
        rows = [_one_alpha(question, data, likeness, speed, reward, alpha, seed) for seed in question.seeds]
        question.on_progress()
        values = {f.name: [getattr(row, f.name) for row in rows] for f in fields(Alpha)}
        found.append(Alpha(**{name: float(np.mean(v)) for name, v in values.items()}))
    return found


def _one_alpha(
    question: ExperimentSetup, data: Matrix, likeness: Floats, speed: Floats, reward: Floats, alpha: float, seed: int
) -> Alpha:
    train, test = ladder.split_half(data, seed, 0.5)
    none = data.arms.index(question.default)
    reward = reward.copy()
    reward[:, none] = reward_of_no_drafter(reward[train], data.time_s[train], none)
    setting, exact = question.setting(seed), ExactGradient(entropy=_ENTROPY)
    bias = reward[train].mean(0) / _ENTROPY
    with threadpool_limits(1):
        made = fit_softmax(data.select_rows(train), reward[train], bias, exact.loss, exact.options, setting)
    manifest = {"kind": made.kind, "arms": list(data.arms), "featurizer": data.featurizer, "options": made.options}
    policy = policies.make({**manifest, "arrays_sha256": "0" * 64}, made.arrays)
    held = data.select_rows(test)
    chosen = policy_probabilities(policy, held)
    best = data.arms[int(data.select_rows(train).time_s.sum(0).argmin())]
    score = ladder.score(held, chosen, best, question.default)
    drafting = chosen[:, none] < 0.5
    aligned, fast = (
        float((chosen * values)[drafting].sum(1).mean()) if drafting.any() else float("nan")
        for values in (likeness[test], np.broadcast_to(speed, chosen.shape))
    )
    return Alpha(alpha, aligned, fast, score.vs_best_fixed, score.vs_plain, float(chosen[:, none].mean()))


def reward_of_no_drafter(reward: Floats, time_s: Floats, none: int) -> float:
    """The constant, of a grid, with the lowest total time when each request takes its arm of the highest reward."""
    drafters = np.delete(reward, none, axis=1)
    best, total = 0.0, np.inf
    for constant in np.quantile(drafters.max(1), np.linspace(0, 1, 21)):
        tried = reward.copy()
        tried[:, none] = constant
        seconds = float(np.take_along_axis(time_s, tried.argmax(1)[:, None], 1).sum())
        if seconds < total:
            best, total = float(constant), seconds
    return best


def subsets(question: ExperimentSetup, name: str, drafters: Sequence[str]) -> dict[int, Interval]:
    """Speed-up of the policy over the best fixed engine, by number of drafters besides none; mean over some subsets."""
    found = {}
    rng = np.random.default_rng(0)
    for size in range(2, len(drafters) + 1):
        every = list(combinations(drafters, size))
        some = [every[i] for i in rng.permutation(len(every))[: len(question.seeds)]]
        gains = []
        for seed, chosen in zip(question.seeds, some, strict=False):
            data = question.data.select_arms([question.default, *chosen])
            gains.append(ladder.evaluate_learner(name, ladder.iid(data, seed), question.setting(seed)).vs_best_fixed)
            question.on_progress()
        found[size] = interval(gains)
    return found


def refused(question: ExperimentSetup, name: str) -> tuple[float, float]:
    """For drafters slower than none on a task: their share of the requests, and their time relative to none."""
    split = ladder.iid(question.data, question.seeds[0])
    policy = fitted(split.train, learner(name), question.setting(question.seeds[0]))
    question.on_progress()
    test, chosen = split.test, policy_probabilities(policy, split.test)
    kinds, half = np.asarray(test.kinds), test.temperatures > 0
    none = test.arms.index(question.default)
    taken, lost = 0.0, []
    for kind in sorted(set(kinds)):
        for sampled in (False, True):
            rows = (kinds == kind) & (half == sampled)
            if not rows.any():
                continue
            totals = test.time_s[rows].sum(0)
            slow = totals > totals[none]
            taken += chosen[rows][:, slow].sum()
            lost += (totals[slow] / totals[none]).tolist()
    return taken / len(test), float(np.mean(lost)) if lost else 1.0


def none_where_it_helps(question: ExperimentSetup, name: str) -> tuple[float, float]:
    """Share of no drafter on held-out requests where it is the fastest, and where it is not."""
    split = ladder.iid(question.data, question.seeds[0])
    policy = fitted(split.train, learner(name), question.setting(question.seeds[0]))
    question.on_progress()
    none = split.test.arms.index(question.default)
    chosen = policy_probabilities(policy, split.test)[:, none]
    right = split.test.time_s.argmin(1) == none
    return float(chosen[right].mean()) if right.any() else 0.0, float(chosen[~right].mean())


def proxies(live: Matrix, replayed: Matrix, alignment: dict[str, Floats], default: str) -> dict[str, float]:
    """How well each statistic ranks the drafters of a task: mean rank correlation (Spearman) with speed.

    The speed is measured on engines (`live`); alignments and replayed tau are of other greedy prompts of the same task.
    """
    from scipy.stats import spearmanr

    drafting = np.asarray([arm != default for arm in live.arms])
    likeness = {name: (replayed, values) for name, values in alignment.items()}
    candidates = {
        **likeness,
        "replayed_tau": (replayed, replayed.acceptance_length),
        "live_tau": (live, live.acceptance_length),
        "live_acceptance_rate": (live, live.acceptance_rate),
    }
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for kind in sorted(set(live.kinds) & set(replayed.kinds)):
        seconds = _greedy(live, live.time_s, kind)[drafting]
        for name, (data, values) in candidates.items():
            of_kind = _greedy(data, values, kind)[drafting]
            if np.isfinite([of_kind, seconds]).all() and np.ptp(of_kind) > 0 and np.ptp(seconds) > 0:
                found[name].append(float(spearmanr(of_kind, -seconds).statistic))
    return {name: float(np.mean(values)) if values else float("nan") for name, values in found.items()}


def _greedy(data: Matrix, values: Floats, kind: str) -> Floats:
    """Means [arms] over the greedy requests of a task with known values; NaN without any."""
    rows = (np.asarray(data.kinds) == kind) & (data.temperatures == 0)
    known = rows & ~np.isnan(values).all(1)
    if not known.any():
        return np.full(values.shape[1], np.nan)
    counts = (~np.isnan(values[known])).sum(0)
    return np.asarray(np.where(counts, np.nansum(values[known], axis=0) / np.maximum(counts, 1), np.nan))
