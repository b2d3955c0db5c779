"""Searches for a chain of tokens in tri-gram tables: ADED's tree search and two baselines, greedy and full search.

All take a shared table and the request's own, whose weights are summed to M, and write at most `k = len(draft)` tokens.
They return (tokens drafted, expected number accepted if M's shares were the target's probabilities).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from draftpick.engines.drafters.trigram.table import SUCCESSORS, Table, find

C1, C2 = 32.0, 8.0
"""ADED's exploration constants (arXiv 2407.12021)."""
_FAN = 2 * SUCCESSORS


@njit(cache=True)
def successors_of(shared: Table, own: Table, a: int, b: int, tokens: Any, weights: Any) -> int:
    """Write the successors of (a, b) in both tables with their summed weights; return their number."""
    count = 0
    slot = find(own, a, b)
    if slot >= 0:
        for i in range(SUCCESSORS):
            if own.successors[slot, i] >= 0:
                tokens[count], weights[count] = own.successors[slot, i], own.weights[slot, i]
                count += 1
    num_own = count
    slot = find(shared, a, b)
    if slot >= 0:
        for i in range(SUCCESSORS):
            token = shared.successors[slot, i]
            if token < 0:
                continue
            known = False
            for j in range(num_own):
                if tokens[j] == token:
                    weights[j] += shared.weights[slot, i]
                    known = True
            if not known:
                tokens[count], weights[count] = token, shared.weights[slot, i]
                count += 1
    return count


@njit(cache=True)
def greedy_search(shared: Table, own: Table, a: int, b: int, draft: npt.NDArray[np.int32]) -> tuple[int, float]:
    """Follow the heaviest successor."""
    tokens, weights = np.empty(_FAN, np.int32), np.empty(_FAN, np.float32)
    reach, expected = 1.0, 0.0
    for depth in range(len(draft)):
        count = successors_of(shared, own, a, b, tokens, weights)
        if count == 0:
            return depth, expected
        best = np.argmax(weights[:count])
        reach *= weights[best] / weights[:count].sum()
        expected += reach
        a, b = b, tokens[best]
        draft[depth] = b
    return len(draft), expected


@njit(cache=True)
def full_search(shared: Table, own: Table, a: int, b: int, draft: npt.NDArray[np.int32]) -> tuple[int, float]:
    """Find the chain with the most expected accepted tokens, by depth-first branch and bound."""
    k = len(draft)
    tokens, weights = np.empty((k, _FAN), np.int32), np.empty((k, _FAN), np.float32)
    counts, at = np.zeros(k, np.int64), np.zeros(k, np.int64)
    reach, gained = np.ones(k + 1), np.zeros(k + 1)
    path = np.empty(k + 2, np.int32)
    path[0], path[1] = a, b
    best, length, depth = 0.0, 0, 0
    counts[0] = successors_of(shared, own, a, b, tokens[0], weights[0])
    while depth >= 0:
        if at[depth] == counts[depth]:
            at[depth] = 0
            depth -= 1
            continue
        i = at[depth]
        at[depth] += 1
        reach[depth + 1] = reach[depth] * weights[depth, i] / weights[depth, : counts[depth]].sum()
        gained[depth + 1] = gained[depth] + reach[depth + 1]
        if gained[depth] + reach[depth + 1] * (k - depth) <= best:
            continue
        path[depth + 2] = tokens[depth, i]
        if gained[depth + 1] > best:
            best, length = gained[depth + 1], depth + 1
            draft[:length] = path[2 : length + 2]
        if depth + 1 < k:
            depth += 1
            at[depth] = 0
            counts[depth] = successors_of(shared, own, path[depth], path[depth + 1], tokens[depth], weights[depth])
    return length, best


@njit(cache=True)
def tree_search(
    shared: Table, own: Table, a: int, b: int, draft: npt.NDArray[np.int32], iterations: int, seed: int
) -> tuple[int, float]:
    """Monte Carlo tree search with PUCT; follows the most visited children, then greedily beyond the visited tree.

    `PUCT = score/visits + (C1 + ln((N + C2 + 1)/C2)) P sqrt(N)/(1 + visits)`; a rollout samples successors by M, and
    the backed-up value is 1 + the sum of M along the path.
    """
    k = len(draft)
    size = iterations * _FAN + 1
    token, first, fan = np.empty(size, np.int32), np.zeros(size, np.int64), np.zeros(size, np.int64)
    weight, prior = np.zeros(size, np.float32), np.ones(size, np.float32)
    visits, score = np.zeros(size, np.int64), np.zeros(size)
    tokens, weights = np.empty(_FAN, np.int32), np.empty(_FAN, np.float32)
    path = np.zeros(k + 1, np.int64)
    state = np.uint64(seed) | np.uint64(1)
    token[0], used = b, 1
    for _ in range(iterations):
        node, before, depth, value = 0, a, 0, 1.0
        path[0] = 0
        while fan[node] > 0:
            child = _select(first[node], fan[node], visits, score, prior)
            before, node, depth = token[node], child, depth + 1
            path[depth] = node
            value += weight[node]
        if depth < k:
            count = successors_of(shared, own, before, token[node], tokens, weights)
            total = weights[:count].sum()
            first[node], fan[node] = used, count
            for i in range(count):
                token[used], weight[used], prior[used] = tokens[i], weights[i], weights[i] / total
                used += 1
            last = token[node]
            for _ in range(k - depth):
                count = successors_of(shared, own, before, last, tokens, weights)
                if count == 0:
                    break
                state = _next(state)
                i = _draw(weights[:count], state)
                value += weights[i]
                before, last = last, tokens[i]
        for i in range(depth + 1):
            visits[path[i]] += 1
            score[path[i]] += value
    length, expected, reach = _most_visited(draft, token, first, fan, visits, prior)
    if length == 0 or length == k:
        return length, expected
    more, gained = greedy_search(shared, own, draft[length - 2] if length > 1 else b, draft[length - 1], draft[length:])
    return length + more, expected + reach * gained


@njit(cache=True)
def _select(first: int, fan: int, visits: Any, score: Any, prior: Any) -> int:
    """Return the child with the highest PUCT; unvisited children come first."""
    parents = 0
    for child in range(first, first + fan):
        parents += visits[child]
    explore = (C1 + np.log((parents + C2 + 1) / C2)) * np.sqrt(parents)
    best, best_value = first, -1.0
    for child in range(first, first + fan):
        if visits[child] == 0:
            return child
        value = score[child] / visits[child] + explore * prior[child] / (1 + visits[child])
        if value > best_value:
            best, best_value = child, value
    return best


@njit(cache=True)
def _most_visited(draft: Any, token: Any, first: Any, fan: Any, visits: Any, prior: Any) -> tuple[int, float, float]:
    node, reach, expected = 0, 1.0, 0.0
    for depth in range(len(draft)):
        best = -1
        for child in range(first[node], first[node] + fan[node]):
            ahead = best < 0 or visits[child] > visits[best]
            if ahead or (visits[child] == visits[best] and prior[child] > prior[best]):
                best = child
        if best < 0 or visits[best] == 0:
            return depth, expected, reach
        reach *= prior[best]
        expected += reach
        draft[depth] = token[best]
        node = best
    return len(draft), expected, reach


@njit(cache=True)
def _next(state: np.uint64) -> np.uint64:
    """xorshift64."""
    state ^= state << np.uint64(13)
    state ^= state >> np.uint64(7)
    return state ^ (state << np.uint64(17))


@njit(cache=True)
def _draw(weights: Any, state: np.uint64) -> int:
    """Sample an index with probability proportional to its weight."""
    left = weights.sum() * (np.float64(state >> np.uint64(11)) / 9007199254740992.0)
    for i in range(len(weights)):
        left -= weights[i]
        if left < 0:
            return i
    return len(weights) - 1
