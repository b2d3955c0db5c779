"""Finds each request again among the rows of a batch.

vLLM hands a `custom_class` proposer token rows without request ids, and rows move when requests end. A row continues a
request when its tokens begin with all that the request had; equal text may share a state, nothing else can.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

State = TypeVar("State")
Tokens = npt.NDArray[np.int32]


@dataclass(slots=True)
class _Request(Generic[State]):
    tokens: Tokens
    length: int
    state: State


class RequestTracker(Generic[State]):
    """States of the requests in the batch; `start(all tokens so far)` makes one, `end` is told of each that left."""

    def __init__(
        self, max_tokens: int, start: Callable[[Tokens], State], end: Callable[[State], None] = lambda state: None
    ) -> None:
        self._max_tokens = max_tokens
        self._start = start
        self._end = end
        self._requests: dict[int, _Request[State]] = {}

    def sync(
        self, sampled: Sequence[Sequence[int]], lengths: npt.NDArray[Any], rows: npt.NDArray[Any]
    ) -> Iterator[tuple[int, State, Tokens, int]]:
        """(row, state, all its tokens, how many are new to the state) of each row that got a token in this step."""
        before, self._requests = self._requests, {}
        for row, new in enumerate(sampled):
            length = int(lengths[row])
            if not new or length >= self._max_tokens:
                continue
            tokens = rows[row, :length]
            request = self._known(before, row, tokens, length - len(new))
            if request is None:
                request = _Request(np.zeros(self._max_tokens, np.int32), 0, self._start(tokens))
            self._requests[row] = request
            news = length - request.length if request.length else 0
            request.tokens[request.length : length] = tokens[request.length :]
            request.length = length
            yield row, request.state, request.tokens[:length], news
        for request in before.values():
            self._end(request.state)

    def _known(
        self, before: dict[int, _Request[State]], row: int, tokens: Tokens, length: int
    ) -> _Request[State] | None:
        """The request that had exactly the first `length` tokens; the one of the same row is tried first."""
        for candidate in (row, *before):
            request = before.get(candidate)
            if request and request.length == length and np.array_equal(request.tokens[:length], tokens[:length]):
                return before.pop(candidate)
        return None
