"""Alignment: 1 for equal answers, 0 for answers that share nothing, in between otherwise."""

import pytest

from draftpick.policy_training.data.text_similarity import STATISTICS, alignment

TEXT = "the cat sat on the mat"


def test_equal_answers_are_aligned() -> None:
    found = alignment(TEXT, TEXT, [1, 2, 3], [1, 2, 3])
    assert set(found) == set(STATISTICS)
    assert all(value == pytest.approx(1) for value in found.values())


def test_answers_without_a_common_word_are_not() -> None:
    assert all(value < 0.05 for value in alignment(TEXT, "dogs run far away today now", [1, 2], [3, 4]).values())


def test_an_empty_answer_is_not_aligned() -> None:
    assert alignment(TEXT, "", [1, 2], []) == {"rouge_l": 0, "bleu": 0, "overlap": 0}


def test_overlap_counts_each_token_as_often_as_both_have_it() -> None:
    assert alignment("a", "a", [1, 1, 2], [1, 2, 2])["overlap"] == pytest.approx(2 / 3)
