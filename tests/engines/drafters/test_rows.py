from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from draftpick.engines.drafters.request_tracking import RequestTracker

SIZE = 40


class Batch:
    """Rows as vLLM keeps them: requests come, grow, move to other rows and go."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.ids: list[int] = []

    def step(
        self, rows: RequestTracker[list[int]], new: list[list[int]]
    ) -> dict[int, tuple[list[int], list[int], int]]:
        for row, tokens in enumerate(new):
            self.rows[row] = self.rows[row] + tokens
        table = np.zeros((8, SIZE), np.int32)
        for row, tokens in enumerate(self.rows):
            table[row, : len(tokens)] = tokens
        lengths = np.asarray([len(tokens) for tokens in self.rows])
        return {row: (state, tokens.tolist(), n) for row, state, tokens, n in rows.sync(new, lengths, table)}


def started(tokens: np.ndarray, row: int) -> list[int]:
    return [int(tokens[0])]


def test_a_request_keeps_its_state_when_rows_move() -> None:
    rows, batch = RequestTracker(SIZE, started), Batch()
    batch.rows = [[1, 1], [2, 2], [3, 3]]
    batch.step(rows, [[4], [5], [6]])
    batch.rows = [batch.rows[2], batch.rows[1]]
    found = batch.step(rows, [[7, 8], [9]])
    assert found == {0: ([3], [3, 3, 6, 7, 8], 2), 1: ([2], [2, 2, 5, 9], 1)}


def test_a_new_request_of_the_same_length_gets_its_own_state() -> None:
    rows, batch = RequestTracker(SIZE, started), Batch()
    batch.rows = [[1, 1, 1]]
    batch.step(rows, [[5]])
    batch.rows = [[2, 1, 1, 5]]
    assert batch.step(rows, [[6]]) == {0: ([2], [2, 1, 1, 5, 6], 0)}


def test_rows_without_a_new_token_and_full_rows_are_left_out() -> None:
    rows, batch = RequestTracker(4, started), Batch()
    batch.rows = [[1], [2], [3, 3, 3]]
    assert set(batch.step(rows, [[], [5], [6]])) == {1}


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3), st.booleans()), max_size=30))
def test_every_state_belongs_to_its_text_and_ends_once(moves: list[tuple[int, int, bool]]) -> None:
    ended: Counter[int] = Counter()
    made: Counter[int] = Counter()

    def start(tokens: np.ndarray, row: int) -> list[int]:
        made[int(tokens[0])] += 1
        return [int(tokens[0])]

    rows, batch = RequestTracker(SIZE, start, lambda state: ended.update([state[0]])), Batch()
    for name, (where, count, leave) in enumerate(moves):
        if leave and batch.rows:
            batch.rows.pop(where % len(batch.rows))
        elif len(batch.rows) < 6:
            batch.rows.insert(where % (len(batch.rows) + 1), [name, 0])
        batch.rows = [tokens for tokens in batch.rows if len(tokens) + count < SIZE]
        for state, tokens, _ in batch.step(rows, [[1] * count for _ in batch.rows]).values():
            assert state == [tokens[0]]
    assert all(made[name] >= ended[name] for name in ended)
    assert sum(made.values()) - sum(ended.values()) == len(batch.rows)
