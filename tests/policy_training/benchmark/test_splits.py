"""The ladder and the experiments on a bandit whose best arms are known."""

from dataclasses import replace

import numpy as np
import pytest

from draftpick.policy_training.benchmark import experiments
from draftpick.policy_training.benchmark import paper_replication as paper
from draftpick.policy_training.benchmark import splits as ladder
from draftpick.policy_training.benchmark.experiments import ExperimentSetup
from draftpick.policy_training.benchmark.splits import Score
from draftpick.policy_training.data.dataset import Dataset, DatasetError, Measurement
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.router.features.lexical import FEATURES
from draftpick.router.types import Outcome
from tests.policy_training.bandit import ARMS, BEST, COSTS, SETTING, Bandit
from tests.policy_training.data.test_dataset import measured

BANDIT = Bandit.draw(400, seed=0)
DATA = BANDIT.matrix()
QUESTION = ExperimentSetup(DATA, COSTS, "plain", seeds=(0, 1))


def test_a_score_of_known_times() -> None:
    test = replace(DATA.select_rows(np.arange(4)), kinds=("a", "a", "b", "b"), time_s=np.asarray([[4.0, 2, 8, 9]] * 4))
    chosen = np.eye(4)[[1, 1, 0, 0]]
    found = ladder.score(test, chosen, "plain", "plain")
    assert found == Score(16 / 12, 16 / 12, 0.5, 2.0, 1.0)
    assert ladder.score(test, np.eye(4)[[1] * 4], "ngram", "plain").share_of_oracle == 1.0


def test_halves_hold_every_kind_alike_and_everything_once() -> None:
    train, test = ladder.split_half(DATA, 3, 0.5)
    assert sorted([*train, *test]) == list(range(400))
    kinds = np.asarray(DATA.kinds)
    for kind in set(DATA.kinds):
        assert abs((kinds[train] == kind).sum() - (kinds[test] == kind).sum()) <= 1
    again, _ = ladder.split_half(DATA, 3, 0.5)
    assert (train == again).all()


def test_a_domain_that_is_judged_was_not_seen() -> None:
    for split in ladder.domains(DATA):
        assert set(split.test.kinds) == {split.name.removeprefix("domain:")}
        assert not set(split.test.kinds) & set(split.train.kinds)


def test_rewording_judges_the_held_out_tasks_alone() -> None:
    other = replace(DATA, contexts=BANDIT.contexts + 1, time_s=2 * DATA.time_s)
    split, own = ladder.rewording(DATA, other, seed=1)
    assert not set(split.train.prompt_ids) & set(split.test.prompt_ids)
    assert len(split.train) + len(split.test) == 400
    assert own.test.prompt_ids == split.test.prompt_ids
    assert (own.test.time_s == split.test.time_s).all()
    assert split.test.contexts == pytest.approx(1 + np.asarray(own.test.contexts))


def test_the_ladder_knows_a_good_learner() -> None:
    dear = replace(COSTS, step_s=COSTS.step_s * np.asarray([1.0, 3.0, 3.0, 3.0])[:, None])
    question = replace(QUESTION, reworded=DATA, costs_under_load=dear, seeds=(0,))
    climb = experiments.run_benchmark(question, ["best_fixed", "ridge", "exact"])
    assert climb["best_fixed"]["iid"]["share_of_oracle"].value == pytest.approx(0)
    assert climb["ridge"]["iid"]["share_of_oracle"].value > 0.85
    assert climb["ridge"]["rewording"]["share_of_oracle"].value > 0.85
    # Costs carry over to another load, rewards do not.
    assert climb["ridge"]["load"]["vs_best_fixed"].value > climb["exact"]["load"]["vs_best_fixed"].value
    assert climb["ridge"]["rewording"] == climb["ridge"]["own_words"]  # no word was changed
    assert set(climb["ridge"]) == {"iid", "source", "domain", "rewording", "own_words", "load"}


def test_more_requests_teach_more_and_sizes_that_are_not_there_are_left_out() -> None:
    curve = experiments.learning_curve(QUESTION, "ridge", (20, 150, 5000))
    assert list(curve) == [20, 150]
    assert curve[150].value > curve[20].value


def test_the_curve_goes_on_with_requests_that_nobody_is_judged_by() -> None:
    question = replace(QUESTION, more_training_data=Bandit.draw(300, seed=9).matrix())
    curve = experiments.learning_curve(question, "ridge", (150, 400, 600))
    assert list(curve) == [150, 400]
    assert curve[400].value > 0.9


def test_an_interval_holds_its_value() -> None:
    found = experiments.interval([0.1] * 3)  # whose mean is 0.10000000000000002
    assert found.low <= found.value <= found.high
    assert experiments.interval([2.0]) == Interval(2.0, 2.0, 2.0)


def test_what_several_answers_tell() -> None:
    """Half of each answer's time is luck, which no other answer tells of."""
    rng, prompts = np.random.default_rng(0), [f"q{i}" for i in range(40)]
    kinds = rng.integers(0, 2, 40)

    def answer(i: int, arm: str) -> Measurement:
        tau = 1.0 if arm == "plain" else 1.6 + 0.4 * (ARMS.index(arm) % 2 == kinds[i]) + rng.uniform(-0.4, 0.4)
        outcome = Outcome("ok", prompt_tokens=30, output_tokens=40, acceptance_length=tau)
        return Measurement(prompts[i], "chat", arm, arm, 0.7, 64, outcome, source="replay")

    contexts = {p: {"features": BANDIT.contexts[i]} for i, p in enumerate(prompts)}
    often = Dataset(tuple(answer(i, arm) for _ in range(6) for i in range(40) for arm in ARMS), contexts)
    found = experiments.answer_predictability(QUESTION, often, "ridge")
    assert 0.3 < found["foresight/other_answers"].value < 0.9
    assert found["foresight/policy"].value < found["foresight/other_answers"].value
    few = replace(often, measurements=often.measurements[: 3 * 40 * len(ARMS)])
    with pytest.raises(DatasetError, match="3 answers per request are too few"):
        experiments.answer_predictability(QUESTION, few, "ridge")


def test_the_embedding_matters_where_it_decides() -> None:
    lost = experiments.importance(QUESTION, "ridge")
    assert set(lost) == {"embedding", *FEATURES}
    assert lost["embedding"] > 0.5
    assert abs(lost["log_turns"]) < 0.05


def test_choices_calibration_and_regret() -> None:
    shares = experiments.evaluation(QUESTION, "ridge").shares
    assert shares["cluster-0"]["ngram"] > 0.9
    assert experiments.calibration(QUESTION, "exact") is None
    predicted, seen = experiments.calibration(QUESTION, "ridge") or ()
    assert predicted.shape == seen.shape
    assert len(seen) == 3 * len(ladder.iid(DATA, 0).test)
    assert abs(np.log(predicted / seen)).mean() < 0.2
    lost = experiments.regret(QUESTION, "ridge")
    assert set(lost) == {*ARMS, "policy"}
    assert lost["policy"][-1] < min(lost[arm][-1] for arm in ARMS)
    assert (np.diff(lost["plain"]) >= 0).all()


# --- the paper's claims ---


def alike() -> np.ndarray:
    """Drafters are aligned with the target where they are fast; the default is the target itself."""
    likeness = np.clip(np.log(BANDIT.tau) / 1.5, 0, 1)
    likeness[:, 0] = 1.0
    return likeness


def test_alpha_trades_alignment_for_cost() -> None:
    found = paper.sweep(replace(QUESTION, seeds=(0,)), alike())
    assert [one.alpha for one in found] == list(paper.ALPHAS)
    assert found[-1].alignment > found[0].alignment
    assert found[-1].vs_best_fixed > found[0].vs_best_fixed


def test_subsets_of_drafters() -> None:
    found = paper.subsets(QUESTION, "ridge", ARMS[1:])
    assert list(found) == [2, 3]
    assert all(one.value > 1 for one in found.values())


def test_slow_drafters_are_refused_and_none_is_taken_where_it_is_fastest() -> None:
    share, slower = paper.refused(QUESTION, "ridge")
    assert share < 0.08
    assert slower > 1
    right, wrong = paper.none_where_it_helps(QUESTION, "ridge")
    assert right > 0.8 > 0.2 > wrong


def test_a_statistic_that_ranks_arms_is_found() -> None:
    noise = np.random.default_rng(0).random(BANDIT.tau.shape)
    found = paper.proxies(DATA, DATA, {"rouge_l": alike(), "bleu": noise, "overlap": noise}, "plain")
    assert found["replayed_tau"] > 0.5
    assert found["rouge_l"] > found["bleu"]
    assert np.isnan(found["live_acceptance_rate"])


def test_alignments_come_from_greedy_requests_and_their_lack_is_an_error() -> None:
    some = [replace(measured("p0", arm), alignment={"rouge_l": 0.5, "bleu": 0.1, "overlap": 0.4}) for arm in ARMS[1:]]
    found = paper.alignments(Dataset(tuple(some)), DATA, "plain")
    assert found["rouge_l"][0].tolist() == [1.0, 0.5, 0.5, 0.5]
    assert np.isnan(found["bleu"][1:]).all()
    with pytest.raises(DatasetError, match="label with --standalone-tokens"):
        paper.alignments(Dataset(()), DATA, "plain")


def test_the_setting_is_the_questions() -> None:
    assert QUESTION.setting(3) == replace(SETTING, seed=3)
    assert (BEST == [1, 2, 3, 0]).all()
