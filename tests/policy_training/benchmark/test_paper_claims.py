"""The seed paper's claims on a bandit where most of them are known to hold."""

from dataclasses import replace

import numpy as np

from draftpick.policy_training.benchmark import paper_claims as claims
from draftpick.policy_training.benchmark.experiments import ExperimentSetup
from draftpick.policy_training.data.dataset import Dataset, Measurement
from draftpick.policy_training.evaluation.evaluate import Interval
from tests.policy_training.bandit import ARMS, COSTS, Bandit
from tests.policy_training.data.test_dataset import measured

BANDIT = Bandit.draw(240, seed=0)
CURVE = {50: Interval(0.5, 0.4, 0.6), 200: Interval(0.79, 0.7, 0.9), 400: Interval(0.8, 0.7, 0.9)}


def said(i: int, a: int) -> Measurement:
    likeness = float(np.clip(np.log(BANDIT.tau[i, a]) / 1.5, 0, 1))
    m = measured(f"p{i}", ARMS[a], tpot_s=0.01 / BANDIT.tau[i, a], acceptance_length=BANDIT.tau[i, a])
    alike = {} if a == 0 else dict.fromkeys(("rouge_l", "bleu", "overlap"), likeness)
    return replace(m, task=f"cluster-{BANDIT.clusters[i]}", temperature=0.0, alignment=alike)


def test_every_claim_has_a_verdict_and_figures() -> None:
    told: list[None] = []
    question = ExperimentSetup(BANDIT.matrix(), COSTS, "plain", seeds=(0, 1), on_progress=lambda: told.append(None))
    data = Dataset(tuple(said(i, a) for i in range(len(BANDIT)) for a in range(len(ARMS))))
    found = claims.check(question, data, "ridge", CURVE, ["math"])
    assert len(told) == claims.steps(question, ["math"])
    holds = {claim.name: claim.holds for claim in found.claims}
    assert holds["beats_every_drafter"]
    assert holds["none_where_drafters_do_not_help"]
    assert holds["two_to_six_drafters"]
    assert holds["self_drafting_arms"]
    assert holds["few_examples_suffice"]
    few = next(claim for claim in found.claims if claim.name == "few_examples_suffice")
    assert few.figures == {"enough": 200, "of": 400, "share_of_oracle": 0.8}
    assert all(claim.result and claim.statement and claim.figures for claim in found.claims)
    assert found.alphas[-1].alignment > found.alphas[0].alignment


def test_a_curve_that_still_rises_does_not_say_how_many_suffice() -> None:
    curve = {size: Interval(share, share, share) for size, share in ((100, 0.5), (200, 0.7))}
    assert not claims.few_examples(curve).holds
