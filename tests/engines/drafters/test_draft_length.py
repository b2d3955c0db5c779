"""How long a draft is: what a request and all before it have shown, against the time of a token's verification."""

from typing import Any

import numpy as np
import pytest

from draftpick.engines.drafters.draft_length import LEVELS, DraftLength, Survival


def ids(*tokens: int) -> Any:
    return np.asarray(tokens, np.int32)


def test_survival_counts_what_is_known_only() -> None:
    counts = Survival(4)
    counts.score((ids(1, 2, 3, 4), 0.0), ids(1, 2))
    assert counts.trials[0].tolist() == [1, 1, 0, 0]
    counts = Survival(4)
    counts.score((ids(1, 2, 3, 4), 0.0), ids(1, 9))
    assert counts.trials[0].tolist() == [1, 1, 1, 1]
    assert counts.hits[0].tolist() == [1, 0, 0, 0]


def test_every_draft_makes_those_before_count_a_little_less() -> None:
    counts, draft = Survival(2), (ids(1, 2), 0.0)
    counts.score(draft, ids(1, 2))
    counts.score(draft, ids(1, 9))
    assert counts.hits[0] == pytest.approx([1.998, 0.998])
    assert counts.trials[0] == pytest.approx([1.998, 1.998])
    counts.score((ids(1), 0.0), ids(7))
    assert counts.hits[0] == pytest.approx([0.998 * 1.998, 0.998])
    assert counts.trials[0] == pytest.approx([0.998 * 1.998 + 1, 1.998])


def test_each_confidence_has_counts_of_its_own() -> None:
    counts = Survival(1)
    for confidence in (0.0, 0.5, 1.4, 100.0):
        counts.score((ids(1), confidence), ids(1))
    assert np.flatnonzero(counts.hits[:, 0]).tolist() == [0, 1, 2, LEVELS - 1]
    counts.score((ids(), 0.0), ids(1))
    counts.score((ids(1), 0.0), ids())
    assert counts.trials.sum() == 4


@pytest.mark.parametrize(
    ("token_cost", "length", "value"),
    [(0.2, 2, 1.96 / 1.4), (0.5, 1, 1.6 / 1.5), (0.59, 1, 1.6 / 1.59), (0.61, 0, 1.0)],
)
def test_at_first_a_token_is_accepted_six_times_in_ten(token_cost: float, length: int, value: float) -> None:
    made = DraftLength(2, token_cost)
    assert made.choose(made.start(), (ids(1, 2), 0.0)) == pytest.approx((length, value))
    assert made.choose(made.start(), (ids(), 0.0)) == (0, 1.0)


def test_a_requests_own_drafts_count_beside_four_of_all_requests() -> None:
    made = DraftLength(2, 0.5)
    request, draft = made.start(), (ids(1, 2), 0.0)
    made.learn(request, draft, ids(1, 2))
    of_all = [(0.998 * 0.6**i + 1) / 1.998 for i in (1, 2)]
    own = [(1 + 4 * share) / 5 for share in of_all]
    assert made.choose(request, draft) == pytest.approx((2, (1 + sum(own)) / 2.0))
    assert made.choose(made.start(), draft) == pytest.approx((2, (1 + sum(of_all)) / 2.0))
