"""Requests of a pool between steps: their text's rows that some head has not read, and what their drafters know."""

from collections.abc import Callable, Sequence
from typing import Any

from draftpick.engines.pool.request import PoolRequest
from draftpick.engines.vllm.head_proposer import Rows


class Row:
    """A request's row in this step. `begin`, `end`: its accepted tokens among those of the step; `came`: its new
    tokens, none while its prompt is read; `verified`: draft tokens that the step verified; `prompt`: whether it read a
    prompt; `ends`: whether its request ends with this step."""

    __slots__ = ("begin", "came", "end", "ends", "id", "place", "prompt", "state", "verified")

    def __init__(self, place: int, req_id: str, state: "RequestText", begin: int, end: int) -> None:
        self.place, self.id, self.state, self.begin, self.end = place, req_id, state, begin, end
        self.came: list[int] = []
        self.verified = 0
        self.prompt = self.ends = False


class RequestText:
    """What the runner keeps of a request: its text's rows that some head has not read, and the states of drafters.

    `known`: reference to vLLM's own state of it.
    """

    def __init__(self, known: Callable[[], Any], pool: PoolRequest, max_tokens: int) -> None:
        self.known = known
        self.pool = pool
        self.max_tokens = max_tokens
        self.parts: list[Rows] = []
        self.unread: dict[str, int] = {}
        self.next_position = 0
        self.length = 0
        self.states: dict[str, Any] = {}

    def add(self, rows: Rows, heads: Sequence[str]) -> None:
        """Append the rows of a step."""
        position = int(rows.positions[0])
        if position != self.next_position:  # new, or preempted and computed again
            self.parts, self.unread = [], {}
        self.next_position = position + len(rows.ids)
        self.parts.append(rows)
        for head in heads:
            self.unread[head] = self.unread.get(head, 0) + len(rows.ids)

    def take(self, head: str) -> list[Rows]:
        """Return the rows that a head has not read, as read from now on."""
        left, taken = self.unread.pop(head, 0), []
        for part in reversed(self.parts):
            if left <= 0:
                break
            taken.append(part if len(part.ids) <= left else part.cut(len(part.ids) - left, len(part.ids)))
            left -= len(part.ids)
        return taken[::-1]

    def prune(self) -> None:
        """Forget the rows that every head has read."""
        most, kept = max(self.unread.values(), default=0), 0
        for i in range(len(self.parts) - 1, -1, -1):
            if kept >= most:
                del self.parts[: i + 1]
                return
            kept += len(self.parts[i].ids)
