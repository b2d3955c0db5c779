"""A tri-gram table of bounded size: weighted likeliest successors per token pair (arXiv 2407.12021).

The functions are compiled by numba and take a `Table`, a tuple of arrays. The table is set-associative: a bigram has
`WAYS` slots in its set, and the least recently used one is evicted.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from draftpick.engines.drafters.trigram.table_file import read_table, write_table

SUCCESSORS = 12
"""Successors per bigram."""
WAYS = 8
_EMPTY = -1


class Table(NamedTuple):
    """Bigrams `keys` [s], their last use `used` [s], `successors` and `weights` [s, 12]; `clock` [1] counts uses."""

    keys: npt.NDArray[np.int64]
    used: npt.NDArray[np.int64]
    successors: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    clock: npt.NDArray[np.int64]


def empty_table(num_bigrams: int) -> Table:
    """Create a table for about `num_bigrams` bigrams, rounded up to a power of two; 120 bytes each."""
    size = max(WAYS, 1 << (num_bigrams - 1).bit_length())
    return Table(
        np.full(size, _EMPTY, np.int64),
        np.zeros(size, np.int64),
        np.full((size, SUCCESSORS), _EMPTY, np.int32),
        np.zeros((size, SUCCESSORS), np.float32),
        np.zeros(1, np.int64),
    )


@njit(cache=True)
def find(table: Table, a: int, b: int) -> int:
    """Return the slot of the bigram (a, b), or -1."""
    key = (np.int64(a) << np.int64(32)) | np.int64(b)
    first = _first_way(table, key)
    for slot in range(first, first + WAYS):
        if table.keys[slot] == key:
            return slot
    return -1


@njit(cache=True)
def add(table: Table, a: int, b: int, c: int, weight: float, cap: float) -> None:
    """Add `weight` to the tri-gram (a, b, c), up to `cap`. A new successor replaces the weakest."""
    key = (np.int64(a) << np.int64(32)) | np.int64(b)
    first = _first_way(table, key)
    slot = first
    for way in range(first, first + WAYS):
        if table.keys[way] == key:
            slot = way
            break
        if table.used[way] < table.used[slot]:
            slot = way
    if table.keys[slot] != key:
        table.keys[slot] = key
        table.successors[slot, :] = _EMPTY
        table.weights[slot, :] = 0
    table.clock[0] += 1
    table.used[slot] = table.clock[0]
    place = 0
    for i in range(SUCCESSORS):
        if table.successors[slot, i] == c:
            table.weights[slot, i] = min(cap, table.weights[slot, i] + weight)
            return
        if table.weights[slot, i] < table.weights[slot, place]:
            place = i
    table.successors[slot, place] = c
    table.weights[slot, place] = min(cap, weight)


@njit(cache=True)
def add_all(table: Table, tokens: npt.NDArray[np.int32], weight: float, cap: float) -> None:
    """Add `weight` to every tri-gram of `tokens` [n]."""
    for i in range(2, len(tokens)):
        add(table, tokens[i - 2], tokens[i - 1], tokens[i], weight, cap)


@njit(cache=True)
def _first_way(table: Table, key: int) -> int:
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    sets = np.uint64(len(table.keys) // WAYS)
    return int((mixed >> np.uint64(32)) % sets) * WAYS


def table_of(sequences: Iterable[npt.NDArray[np.int32]], num_bigrams: int) -> Table:
    """Build the initial table of a corpus: counts normalised per bigram, the 12 best successors, the most frequent
    bigrams."""
    parts = [np.stack([s[:-2], s[1:-1], s[2:]], axis=1) for s in sequences if len(s) > 2]
    table = empty_table(num_bigrams)
    if not parts:
        return table
    trigrams, counts = np.unique(np.concatenate(parts), axis=0, return_counts=True)
    _, bigram = np.unique(trigrams[:, :2], axis=0, return_inverse=True)
    totals = np.bincount(bigram, weights=counts)
    # Add the rarest bigrams and successors first, so that eviction keeps the most frequent.
    for i in np.lexsort((counts, totals[bigram])):
        a, b, c = trigrams[i]
        add(table, a, b, c, counts[i] / totals[bigram[i]], 1.0)
    return table


def save_table(table: Table, path: Path, vocab_size: int) -> None:
    """Write the bigrams in use, least recently used first."""
    taken = np.flatnonzero(table.keys != _EMPTY)
    order = taken[np.argsort(table.used[taken])]
    bigrams = np.stack([table.keys[order] >> 32, table.keys[order] & 0xFFFFFFFF], axis=1).astype(np.int32)
    write_table(path, bigrams, table.successors[order], table.weights[order], vocab_size)


def load_table(path: Path, num_bigrams: int) -> Table:
    """Read the output of `save_table` into a table for `num_bigrams`. Raises ValueError for another file."""
    bigrams, successors, weights = read_table(path)
    table = empty_table(max(num_bigrams, len(bigrams)))
    _fill(table, bigrams, successors, weights)
    return table


@njit(cache=True)
def _fill(table: Table, bigrams: Any, successors: Any, weights: Any) -> None:
    for i in range(len(bigrams)):
        for j in range(successors.shape[1]):
            if successors[i, j] >= 0:
                add(table, bigrams[i, 0], bigrams[i, 1], successors[i, j], weights[i, j], np.float32(1.0))
