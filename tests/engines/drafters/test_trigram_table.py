from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.engines.drafters.trigram.table import (
    SUCCESSORS,
    WAYS,
    add,
    empty_table,
    find,
    load_table,
    save_table,
    table_of,
)
from draftpick.engines.drafters.trigram.table_file import table_vocab_size


def weights(table: object, a: int, b: int) -> dict[int, float]:
    slot = find(table, a, b)
    if slot < 0:
        return {}
    pairs = zip(table.successors[slot], table.weights[slot], strict=True)  # type: ignore[attr-defined]
    return {int(token): round(float(weight), 4) for token, weight in pairs if token >= 0}


def test_weights_add_up_to_the_cap() -> None:
    table = empty_table(64)
    for _ in range(5):
        add(table, 1, 2, 3, 0.04, 0.1)
    add(table, 1, 2, 4, 0.04, 0.1)
    assert weights(table, 1, 2) == {3: 0.1, 4: 0.04}
    assert weights(table, 2, 1) == {}


def test_a_new_successor_takes_the_place_of_the_weakest() -> None:
    table = empty_table(64)
    for token in range(SUCCESSORS):
        add(table, 7, 8, token, 0.1 + token, 99.0)
    add(table, 7, 8, 500, 0.05, 99.0)
    kept = weights(table, 7, 8)
    assert len(kept) == SUCCESSORS
    assert 500 in kept
    assert 0 not in kept


def test_memory_is_bounded_and_the_bigram_used_longest_ago_gives_way() -> None:
    table = empty_table(WAYS)
    for a in range(WAYS):
        add(table, a, 0, 1, 1.0, 3.0)
    add(table, 0, 0, 1, 1.0, 3.0)
    add(table, 99, 0, 1, 1.0, 3.0)
    assert find(table, 1, 0) == -1
    assert {a for a in (*range(WAYS), 99) if find(table, a, 0) >= 0} == {0, *range(2, WAYS), 99}


@given(st.lists(st.integers(0, 49_151), max_size=200))
def test_any_text_leaves_its_last_trigram(tokens: list[int]) -> None:
    table = empty_table(16)
    for a, b, c in zip(tokens, tokens[1:], tokens[2:], strict=False):
        add(table, a, b, c, 1.0, 3.0)
        assert c in weights(table, a, b)


def test_a_corpus_becomes_shares_of_its_bigrams() -> None:
    table = table_of([np.asarray([1, 2, 3, 1, 2, 3, 1, 2, 4], np.int32), np.asarray([5], np.int32)], 64)
    assert weights(table, 1, 2) == {3: 0.6667, 4: 0.3333}
    assert weights(table, 2, 3) == {1: 1.0}


def test_the_commonest_bigrams_of_a_corpus_stay() -> None:
    common = np.tile(np.asarray([1, 2, 3], np.int32), 20)
    rare = np.arange(100, 400, dtype=np.int32)
    table = table_of([rare, common], WAYS)
    assert find(table, 1, 2) >= 0
    assert find(table, 2, 3) >= 0


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    table = table_of([np.asarray([1, 2, 3, 1, 2, 4, 9, 1, 2], np.int32)], 64)
    save_table(table, tmp_path / "table.safetensors", vocab_size=10)
    again = load_table(tmp_path / "table.safetensors", 128)
    assert weights(again, 1, 2) == pytest.approx(weights(table, 1, 2), abs=1e-3)
    assert table_vocab_size(tmp_path / "table.safetensors") == 10


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_another_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "table.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"table\.safetensors"):
        load_table(path, 64)
