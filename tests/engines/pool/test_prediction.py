"""A prediction of an answer: what drafters see of it, and how much of it came."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.engines.drafters.prompt_lookup import NgramDrafter
from draftpick.engines.pool.prediction import Alignment, PredictedText, count_accepted

PROMPT = np.arange(100, 120, dtype=np.int32)
PREDICTION = [7, 8, 9, 7, 5, 6]


def test_what_follows_the_prompt_is_the_beginning_of_the_prediction() -> None:
    text = PredictedText(PROMPT, PREDICTION, 64)
    drafter = NgramDrafter(4)
    draft, _ = drafter.draft(None, text.extend(PROMPT), 4)
    assert draft.tolist() == PREDICTION[:4]


def test_a_text_grows_with_the_answer() -> None:
    text = PredictedText(PROMPT, PREDICTION, 24)
    whole = np.concatenate([PROMPT, np.asarray([7, 8, 1, 2], np.int32)])
    first, last = text.extend(whole[:21]).tolist(), text.extend(whole).tolist()
    assert first == [*PROMPT, *PREDICTION, *PROMPT[-8:], 7]
    assert last == [*PROMPT, *PREDICTION, *PROMPT[-8:], 7, 8, 1, 2]


def test_of_a_short_prompt_all_precedes_the_prediction() -> None:
    assert PredictedText(PROMPT[:3], [1], 9).extend(PROMPT[:4]).tolist() == [100, 101, 102, 1, 100, 101, 102, 103]


@pytest.mark.parametrize(
    ("prediction", "answer", "accepted"),
    [
        ([1, 2, 3], [1, 2, 3], 3),
        ([1, 2, 3], [1, 2], 2),
        ([1, 2, 3], [], 0),
        ([], [1, 2], 0),
        ([1, 2, 3, 4, 5], [1, 9, 3, 4, 5], 4),  # one token is another
        ([1, 2, 3, 4, 5], [9, 8, 1, 2, 3, 4, 5], 5),  # words before it
        ([1, 2, 3, 4, 5, 6], [1, 2, 5, 6], 4),  # a part is left out
        ([1, 2], [1, 2, 1, 2, 1, 2], 2),  # each token counts once
        ([1, 2, 3], [7, 8, 9], 0),
        ([1, 2, 3, 4], [3, 4, 1, 2], 2),  # what went by does not come back
    ],
)
def test_tokens_of_a_prediction_that_are_in_the_answer(prediction: list[int], answer: list[int], accepted: int) -> None:
    assert count_accepted(prediction, answer) == accepted


def ahead(prediction: list[int], answer: list[int], limit: int = 6) -> list[object]:
    alignment = Alignment(prediction)
    for token in answer:
        alignment.follow(token)
    return list(alignment.next_tokens(limit))


def test_a_prediction_is_drafted_from_its_beginning_and_where_it_is_found_again() -> None:
    prediction = list(range(10, 30))
    assert ahead(prediction, []) == prediction[:6]
    assert ahead(prediction, prediction[:8]) == prediction[8:14]
    assert ahead(prediction, [*prediction[:8], 99]) == []  # a difference
    assert ahead(prediction, [*prediction[:8], 99, prediction[9]]) == prediction[10:12]  # one other token
    assert ahead(prediction, [1, 2, 3, prediction[0]]) == prediction[1:3]  # words before it
    assert ahead(prediction, [*prediction[:4], 1, 2, *prediction[9:11]]) == prediction[11:15]
    assert ahead(prediction, prediction) == []


def test_the_longer_of_two_drafts_is_taken() -> None:
    text = PredictedText(PROMPT, PREDICTION, 64)
    assert text.draft([1, 2], 4) == PREDICTION[:4]
    assert text.draft([1, 2, 3, 4], 4) == [1, 2, 3, 4]


SMALL = st.lists(st.integers(0, 3), max_size=30)


@given(SMALL, SMALL)
def test_no_more_is_accepted_than_was_predicted_or_answered(prediction: list[int], answer: list[int]) -> None:
    assert 0 <= count_accepted(prediction, answer) <= min(len(prediction), len(answer))
    assert count_accepted(prediction, prediction) == len(prediction)
