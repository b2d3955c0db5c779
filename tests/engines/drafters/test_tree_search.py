from typing import Any

import numpy as np
import pytest

from draftpick.engines.drafters.trigram.table import Table, add, empty_table
from draftpick.engines.drafters.trigram.tree_search import full_search, greedy_search, tree_search


def table(*trigrams: tuple[int, int, int, float]) -> Table:
    made = empty_table(64)
    for a, b, c, weight in trigrams:
        add(made, a, b, c, weight, 3.0)
    return made


NONE = table()
# From (1, 2) the heaviest first step (3) leads to nothing sure; the lighter one (4) leads on surely.
TRAP = table((1, 2, 3, 0.55), (1, 2, 4, 0.45), *((2, 3, c, 0.1) for c in range(10, 20)), (2, 4, 5, 1.0), (4, 5, 6, 1.0))


def tree(shared: Table, own: Table, a: int, b: int, draft: Any) -> tuple[int, float]:
    return tree_search(shared, own, a, b, draft, 150, 7)  # type: ignore[no-any-return]


def run(search: Any, shared: Table, own: Table, k: int, a: int = 1, b: int = 2) -> tuple[list[int], float]:
    draft = np.zeros(k, np.int32)
    length, expected = search(shared, own, a, b, draft)
    return draft[:length].tolist(), expected


@pytest.mark.parametrize("search", [tree, greedy_search, full_search])
def test_a_sure_chain_is_followed_to_its_end(search: Any) -> None:
    chain = table((1, 2, 3, 1.0), (2, 3, 4, 0.5), (3, 4, 5, 0.2))
    assert run(search, chain, NONE, 8) == ([3, 4, 5], pytest.approx(3.0))
    assert run(search, NONE, chain, 2) == ([3, 4], pytest.approx(2.0))


@pytest.mark.parametrize("search", [tree, greedy_search, full_search])
def test_an_unknown_bigram_gives_no_draft(search: Any) -> None:
    assert run(search, TRAP, NONE, 4, a=8, b=9) == ([], 0.0)


@pytest.mark.parametrize("search", [tree, greedy_search, full_search])
def test_the_weights_of_both_tables_add_up(search: Any) -> None:
    shared, own = table((1, 2, 3, 0.6), (1, 2, 4, 0.4)), table((1, 2, 4, 0.3))
    assert run(search, shared, own, 1) == ([4], pytest.approx(0.7 / 1.3))


def test_the_full_search_sees_past_the_first_step() -> None:
    assert run(greedy_search, TRAP, NONE, 3)[0][0] == 3
    assert run(full_search, TRAP, NONE, 3) == ([4, 5, 6], pytest.approx(1.35))


def test_the_tree_search_repeats_itself_under_a_seed() -> None:
    rng = np.random.default_rng(0)
    made = empty_table(4096)
    for _ in range(5000):
        a, b, c = rng.integers(0, 20, 3)
        add(made, a, b, c, rng.random(), 3.0)
    first = [run(tree, made, NONE, 4, a, b) for a in range(5) for b in range(5)]
    assert first == [run(tree, made, NONE, 4, a, b) for a in range(5) for b in range(5)]
    assert all(len(draft) == 4 for draft, _ in first)
