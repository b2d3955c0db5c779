"""Identifies each request among the rows of a batch.

vLLM passes token rows without request ids to a `custom_class` proposer, and rows move when requests end. A row
continues a request if its tokens begin with all tokens of that request; only identical texts may share a state.
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
    """States of the requests in the batch; `start(all tokens so far, row)` creates one, `end` is called when a request
    leaves."""

    def __init__(
        self, max_tokens: int, start: Callable[[Tokens, int], State], end: Callable[[State], None] = lambda state: None
    ) -> None:
        self._max_tokens = max_tokens
        self._start = start
        self._end = end
        self._requests: dict[int, _Request[State]] = {}

    def sync(
        self, sampled: Sequence[Sequence[int]], lengths: npt.NDArray[Any], rows: npt.NDArray[Any]
    ) -> Iterator[tuple[int, State, Tokens, int]]:
        """Yield (row, state, all its tokens, number of new tokens) for each row that got a token in this step."""
        before, self._requests = self._requests, {}
        for row, new in enumerate(sampled):
            length = int(lengths[row])
            if not new or length >= self._max_tokens:
                continue
            tokens = rows[row, :length]
            request = self._known(before, row, tokens, length - len(new))
            if request is None:
                request = _Request(np.zeros(self._max_tokens, np.int32), 0, self._start(tokens, row))
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
        """Find the request with exactly the first `length` tokens, trying the same row first."""
        for candidate in (row, *before):
            request = before.get(candidate)
            if request and request.length == length and np.array_equal(request.tokens[:length], tokens[:length]):
                return before.pop(candidate)
        return None
