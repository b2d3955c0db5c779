"""Replication of the seed paper's claims on our engines: each claim with its figures and a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from draftpick.policy_training.benchmark import paper_replication as paper
from draftpick.policy_training.benchmark import splits as ladder
from draftpick.policy_training.benchmark.experiments import ExperimentSetup
from draftpick.policy_training.data.dataset import Dataset
from draftpick.policy_training.data.matrix import matrix
from draftpick.policy_training.data.text_similarity import STATISTICS
from draftpick.policy_training.evaluation.evaluate import Interval

ENOUGH = 0.98
"""Share of the final gain at which a learning curve counts as saturated."""
_NEVER = 0.05  # of the requests: a smaller share counts as rejected


@dataclass(frozen=True, slots=True)
class Claim:
    """`statement`: the paper's finding; `result`: ours, in words; `figures`: ours in numbers."""

    name: str
    statement: str
    holds: bool
    result: str
    figures: Mapping[str, float]

    def as_figures(self) -> dict[str, float]:
        """Whether the claim holds, 0 or 1, and its figures, with the claim's name as prefix."""
        return {f"{self.name}/holds": float(self.holds)} | {f"{self.name}/{k}": v for k, v in self.figures.items()}


@dataclass(frozen=True, slots=True)
class Findings:
    """All claims, and the sweep over alpha, which has its own plot."""

    claims: list[Claim]
    alphas: list[paper.Alpha]


def check(
    question: ExperimentSetup,
    data: Dataset,
    learner: str,
    curve: Mapping[int, Interval],
    self_drafting: Sequence[str] = (),
) -> Findings:
    """Check every claim on the paper's fleet; `data` contains live and replayed measurements, some with alignments.

    `curve`: gain by number of examples, of any fleet. `self_drafting`: arms with a layer-skip drafter of the target.
    """
    alignment = paper.alignments(data, question.data, question.default)
    alphas = paper.sweep(question, alignment["rouge_l"])
    live = Dataset(tuple(m for m in data.measurements if m.source == "live"), data.contexts)
    ranks = paper.proxies(matrix(live, question.data.arms), question.data, alignment, question.default)
    claims = [
        _beats_every_drafter(question, learner),
        _alpha_trades(alphas),
        _none_where_drafters_do_not_help(question, learner),
        few_examples(curve),
        _refused(question, learner),
        _two_to_six(question, learner),
        *([_self_drafting(question, learner, self_drafting)] if self_drafting else []),
        _alignment_ranks(ranks),
    ]
    return Findings(claims, alphas)


def steps(question: ExperimentSetup, self_drafting: Sequence[str] = ()) -> int:
    """Number of progress steps of `check`."""
    drafters, seeds = len(question.data.arms) - 1, len(question.seeds)
    subsets = sum(min(comb(drafters, size), seeds) for size in range(2, drafters + 1))
    return len(paper.ALPHAS) + 3 + subsets + bool(self_drafting)


def _beats_every_drafter(question: ExperimentSetup, learner: str) -> Claim:
    scores = [
        ladder.evaluate_learner(learner, ladder.iid(question.data, s), question.setting(s)) for s in question.seeds
    ]
    ratios = [score.vs_best_fixed for score in scores]
    question.on_progress()
    return Claim(
        "beats_every_drafter",
        "on mixed domains the policy is faster than every single drafter",
        min(ratios) > 1,
        f"{np.mean(ratios):.3f} times as fast as the best one ({min(ratios):.3f} to {max(ratios):.3f} over the seeds)",
        {"vs_best_fixed": float(np.mean(ratios)), "low": min(ratios), "high": max(ratios)},
    )


def _alpha_trades(alphas: Sequence[paper.Alpha]) -> Claim:
    drafting = [one for one in alphas if not np.isnan(one.alignment)]
    first, last = drafting[0], drafting[-1]
    fastest = max(alphas, key=lambda one: one.vs_plain)
    slowest = min(alphas, key=lambda one: one.vs_plain)
    return Claim(
        "alpha_trades_alignment_for_speed",
        "a larger alpha selects better aligned drafters, a smaller one faster drafters",
        last.alignment > first.alignment and last.speed <= first.speed,
        f"alignment {first.alignment:.3f} to {last.alignment:.3f} and drafting speed {first.speed:.3f} to "
        f"{last.speed:.3f} from alpha {first.alpha:g} to {last.alpha:g}; total time is lowest at {fastest.alpha:g} "
        f"({fastest.vs_plain:.3f} times as fast as without a drafter) and highest at {slowest.alpha:g} "
        f"({slowest.vs_plain:.3f})",
        {
            "alignment_first": first.alignment, "alignment_last": last.alignment,
            "speed_first": first.speed, "speed_last": last.speed,
            "fastest_alpha": fastest.alpha, "fastest_vs_plain": fastest.vs_plain,
            "fastest_vs_best_fixed": fastest.vs_best_fixed, "slowest_vs_plain": slowest.vs_plain,
        },
    )  # fmt: skip


def _none_where_drafters_do_not_help(question: ExperimentSetup, learner: str) -> Claim:
    right, wrong = paper.none_where_it_helps(question, learner)
    return Claim(
        "none_where_drafters_do_not_help",
        "the arm without a drafter is chosen where drafters do not help",
        right > 2 * wrong,
        f"chosen for {right:.1%} of the requests that are fastest without a drafter and {wrong:.1%} of the others",
        {"share_where_fastest": right, "share_elsewhere": wrong},
    )


def few_examples(curve: Mapping[int, Interval]) -> Claim:
    """From a learning curve: share of the oracle's gain by number of examples, of any fleet."""
    sizes, last = sorted(curve), curve[max(curve)].value
    enough = next(size for size in sizes if curve[size].value >= ENOUGH * last)
    return Claim(
        "few_examples_suffice",
        "fewer than 10,000 examples suffice",
        enough < min(sizes[-1], 10_000),  # the last size proves nothing
        f"{ENOUGH:.0%} of the gain of {sizes[-1]} examples is reached with {enough}",
        {"enough": float(enough), "of": float(sizes[-1]), "share_of_oracle": last},
    )


def _refused(question: ExperimentSetup, learner: str) -> Claim:
    share, slower = paper.refused(question, learner)
    return Claim(
        "misaligned_drafters_are_refused",
        "drafters of the wrong domain cost speed (17 % in the paper) and are rejected",
        share < _NEVER,
        f"drafters slower than none on a task take {slower:.2f} times as long and get {share:.1%} of the requests",
        {"share": share, "time_over_none": slower},
    )


def _two_to_six(question: ExperimentSetup, learner: str) -> Claim:
    drafters = [arm for arm in question.data.arms if arm != question.default]
    gains = paper.subsets(question, learner, drafters)
    words = ", ".join(f"{size}: {gain.value:.3f}" for size, gain in gains.items())
    return Claim(
        "two_to_six_drafters",
        "it works with two to six drafters",
        all(gain.value >= 1 for gain in gains.values()),
        f"speed-up over the best of each set (mean over sets), by number of drafters: {words}",
        {f"vs_best_fixed_{size}": gain.value for size, gain in gains.items()},
    )


def _self_drafting(question: ExperimentSetup, learner: str, arms: Sequence[str]) -> Claim:
    data = question.data.select_arms([question.default, *arms])
    scores = [ladder.evaluate_learner(learner, ladder.iid(data, s), question.setting(s)) for s in question.seeds]
    gain = float(np.mean([score.vs_plain for score in scores]))
    own = float(np.mean([data.time_s[:, 0].sum() / data.time_s[:, i].sum() for i in range(1, len(data.arms))]))
    question.on_progress()
    return Claim(
        "self_drafting_arms",
        "it works with drafters made of the target's own layers",
        gain > 1.01,
        f"alone they are {own:.2f} times as fast as none; a policy over none and {' and '.join(arms)} is {gain:.3f} "
        "times as fast",
        {"arm_vs_plain": own, "policy_vs_plain": gain},
    )


def _alignment_ranks(ranks: Mapping[str, float]) -> Claim:
    best = max(ranks, key=lambda name: ranks[name])
    alike = max(ranks[name] for name in STATISTICS)
    words = ", ".join(f"{name} {value:.2f}" for name, value in sorted(ranks.items(), key=lambda item: -item[1]))
    return Claim(
        "alignment_ranks_drafters",
        "alignment with the target's answer predicts the fastest drafter",
        alike >= max(ranks["replayed_tau"], ranks["live_acceptance_rate"]),
        f"{best} ranks the drafters of a task best; rank correlation with measured speed: {words}",
        dict(ranks),
    )
