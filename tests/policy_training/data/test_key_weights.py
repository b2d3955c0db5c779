"""The weight of one API key in data from records."""

import numpy as np
import pytest

from draftpick.policy_training.data.key_weights import key_weights


def test_rows_of_one_key_or_without_keys_count_in_full() -> None:
    assert key_weights([]).tolist() == []
    for keys in ([""] * 200, ["only"] * 200, ["greedy"] * 200 + ["seldom"] * 49):
        assert (key_weights(keys) == 1.0).all()


def test_a_key_with_most_rows_has_half_the_weight() -> None:
    keys = ["greedy", "greedy", "greedy", "modest"] * 1000
    weights, greedy = key_weights(keys), np.asarray(keys) == "greedy"
    assert (weights[~greedy] == 1.0).all()
    assert weights[greedy][500:].sum() == pytest.approx(weights[~greedy].sum() - 500 / 3, rel=0.02)


def test_a_weight_depends_on_earlier_rows_only() -> None:
    keys = ["greedy"] * 300 + ["modest"] * 60 + ["greedy"] * 40
    assert key_weights(keys)[:350].tolist() == key_weights(keys[:350]).tolist()
    assert (key_weights(keys)[-40:] == 0.25).all()


def test_a_weight_is_the_others_rows_over_its_own() -> None:
    """From fifty rows of others on."""
    keys = ["greedy"] * 100 + ["modest"] * 49 + ["greedy"] + ["modest"] + ["greedy"]
    weights = key_weights(keys)
    assert weights[149] == 1.0
    assert weights[151] == pytest.approx(50 / 102)
