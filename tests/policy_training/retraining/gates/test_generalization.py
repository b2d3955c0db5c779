"""Gates on what training has not seen: words that change nothing pass, words that mislead do not; nor do domains."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.data.from_records import dataset_of
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.learners import learner
from draftpick.policy_training.retraining.gates.generalization import (
    domains_from_records,
    domains_from_tasks,
    leave_domain_out_checks,
    rewording_checks,
)
from draftpick.policy_training.train import fitted
from draftpick.router.policies.base import Policy
from tests.policy_training.bandit import SETTING, Bandit
from tests.policy_training.retraining.test_pipeline import log

MATRIX = Bandit.draw(600, seed=3).matrix()
TRAINED: list[Sequence[str]] = []


def fit(rows: Matrix) -> Policy:
    TRAINED.append(rows.prompt_ids)
    return fitted(rows, learner("tau_cost"), SETTING)


def reworded(moved: float, n: int = 200) -> Matrix:
    """The first n requests, whose embedding moved so far from where it was."""
    assert MATRIX.contexts is not None
    contexts = MATRIX.contexts.copy()
    contexts[:, :4] += moved * np.roll(np.eye(4), 1, axis=0)[contexts[:, :4].argmax(1)]
    return replace(MATRIX, contexts=contexts).select_rows(np.arange(n))


def test_other_words_that_say_the_same_keep_the_gain() -> None:
    check = rewording_checks(MATRIX, MATRIX, reworded(0.2), "plain", fit)
    assert check.passed, check
    assert check.value > 0.95
    assert not set(TRAINED[-1]) & set(MATRIX.prompt_ids[:200])  # what judges was not learned from


def test_other_words_that_mislead_are_shown_to() -> None:
    check = rewording_checks(MATRIX, MATRIX, reworded(6.0), "plain", fit)
    assert not check.passed
    assert check.value < 0.95
    assert "saves" in check.why


def test_other_words_need_the_same_requests_in_their_own() -> None:
    others = replace(reworded(0.2), prompt_ids=tuple(f"other{i}" for i in range(200)))
    with pytest.raises(DatasetError, match="0 reworded requests have an original in the other data"):
        rewording_checks(MATRIX, MATRIX, others, "plain", fit)


def test_a_domain_that_training_never_saw_is_served_by_the_best_of_the_others() -> None:
    named = list[str]()
    check = leave_domain_out_checks(MATRIX, domains_from_tasks(MATRIX, MATRIX), fit, named.append)
    assert check.passed, check
    assert named == [f"cluster-{i}" for i in range(4)]
    kinds = dict(zip(MATRIX.prompt_ids, MATRIX.kinds, strict=True))
    assert {len({kinds[id] for id in ids}) for ids in TRAINED[-4:]} == {3}


def test_a_domain_that_looks_like_another_and_is_not_is_found() -> None:
    """Of two that look alike, one is maths that the head flies through, and in the other it accepts nothing."""
    two = MATRIX.select_arms(("plain", "math"))
    assert two.contexts is not None
    kinds = np.asarray(two.kinds)
    two = two.select_rows((kinds != "cluster-2") | (np.arange(600) % 5 == 0))
    assert two.contexts is not None
    contexts = two.contexts.copy()
    trap = np.asarray(two.kinds) == "cluster-3"
    contexts[trap, 2], contexts[trap, 3] = contexts[trap, 3], 0.6
    alike = replace(two, contexts=contexts)
    check = leave_domain_out_checks(alike, domains_from_tasks(alike, alike), fit)
    assert not check.passed
    assert check.why.startswith("cluster-3:")
    assert check.value > 0.15


def test_requests_that_do_not_say_their_kind_are_of_the_nearest() -> None:
    records, base = MATRIX.select_rows(np.arange(300)), MATRIX.select_rows(np.arange(300, 600))
    anonymous = replace(records, kinds=("traffic",) * 300, prompt_ids=tuple(f"r{i}/1" for i in range(300)))
    domains = domains_from_tasks(anonymous + base, base)
    assert (domains.labels == np.asarray(base.kinds)).all()
    assert (domains.training == np.asarray([*records.kinds, *base.kinds])).mean() > 0.98


def test_records_whose_shadows_tell_of_all_arms_are_judged_by_cluster() -> None:
    data = dataset_of(log(range(600), shadows=2))
    learned = replace(MATRIX, prompt_ids=tuple(f"r{i}/1" for i in range(600)))
    domains = domains_from_records(learned, data, 0)
    assert len(domains.evaluation) == 300
    assert len(domains.training) == 600
    assert 3 <= len(list(domains)) <= 5
    assert leave_domain_out_checks(learned, domains, fit).passed
    with pytest.raises(DatasetError, match="no request was measured under all"):
        domains_from_records(learned, dataset_of(log(range(100))), 0)


def test_one_domain_alone_cannot_be_left_out() -> None:
    one = replace(MATRIX, kinds=("math",) * 600)
    with pytest.raises(DatasetError, match="1 domains have 20 requests"):
        leave_domain_out_checks(one, domains_from_tasks(one, one), fit)
