"""One replica of an engine as a discrete-event simulation: running and waiting requests, and their finished steps.

`LockStepReplica` is vLLM's engine core, with all requests in every step. A request joins at the end of the current
step; the step with its prefill also advances the others by one step, and takes the time of the prefill alone plus the
others' addition to a step, at least a step of them all. vLLM does so with chunked prefill and without, for prompts
within `max_num_batched_tokens`. `DisaggregatedReplica` is a mock engine: every request has its own timetable, and a
prefill does not slow the others.
"""

import math
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from draftpick.policy_training.simulator.engine import Arm, Steps
from draftpick.policy_training.simulator.requests import Requests

_EPS = 1e-6


class RequestLog:
    """Request data for the replicas, and their results: times of the first and the last token."""

    def __init__(self, requests: Requests) -> None:
        self.prompt_tokens: list[float] = requests.prompt_tokens.tolist()
        self.decode_tokens: list[float] = (requests.output_tokens - 1.0).tolist()
        self.sampled: list[bool] = requests.sampled.tolist()
        self.tau = requests.tau
        self.first_s = array("d", bytes(8 * len(requests)))
        self.finish_s = array("d", bytes(8 * len(requests)))


class TaskClass:
    """Shared by all replicas of an arm: tables of its modes, and their columns of acceptance lengths."""

    def __init__(self, number: int, arm: Arm, requests: Requests) -> None:
        self.number, self.arm = number, arm
        self.steps = [Steps(mode.profile) for mode in arm.modes]
        self.columns = [requests.column(mode.column) for mode in arm.modes]
        self.max_running = arm.max_running


class Replica(ABC):
    """A replica between events. `next_s`: time of the next one; `in_flight`: running and waiting requests."""

    __slots__ = (
        "_ahead",
        "_context",
        "_done",
        "_log",
        "_mode",
        "_running",
        "_sampled",
        "_since",
        "_step_s",
        "_task_class",
        "_waiting",
        "busy_s",
        "in_flight",
        "next_s",
        "number",
        "place",
        "request_s",
    )  # fmt: skip

    def __init__(self, task_class: TaskClass, log: RequestLog) -> None:
        self._task_class, self._log = task_class, log
        self.number, self.in_flight, self.place, self.next_s = task_class.number, 0, 0, math.inf
        self.busy_s = self.request_s = 0.0
        self._waiting: deque[int] = deque()
        self._running: list[tuple[float, int]] = []
        self._done, self._ahead = 0.0, 0.0
        self._since, self._step_s, self._mode = 0.0, 1.0, task_class.arm.mode_at(1)
        self._context, self._sampled = 0.0, 0

    @abstractmethod
    def arrive(self, now: float, i: int) -> None:
        """Request i arrives."""

    @abstractmethod
    def run(self, now: float) -> list[int]:
        """Process the event at `next_s`; return the finished requests."""

    def _count(self, running: int, seconds: float) -> None:
        """Account for seconds with `running` requests."""
        if running:
            self.busy_s += seconds
            self.request_s += running * seconds

    def _enter(self, i: int) -> float:
        """Start request i; return its number of steps."""
        book = self._log
        tokens = book.decode_tokens[i]
        self._context += book.prompt_tokens[i] + tokens / 2
        self._sampled += book.sampled[i]
        return tokens / float(book.tau[i, self._task_class.columns[self._mode]])

    def _leave(self, i: int, now: float) -> None:
        book = self._log
        self._context -= book.prompt_tokens[i] + book.decode_tokens[i] / 2
        self._sampled -= book.sampled[i]
        book.finish_s[i] = now
        self.in_flight -= 1

    def _step(self, running: int) -> float:
        """Seconds of a step of the current mix of requests."""
        context = self._context / max(len(self._running), 1)
        return self._task_class.steps[self._mode](running, context, self._sampled > 0)

    def _switch(self, running: int) -> None:
        """Switch to the draft length for `running` requests; remaining steps are converted."""
        mode = self._task_class.arm.mode_at(running)
        if mode == self._mode:
            return
        tau, before, after = self._log.tau, self._task_class.columns[self._mode], self._task_class.columns[mode]
        done = self._done
        self._running = [(done + (at - done) * float(tau[i, before] / tau[i, after]), i) for at, i in self._running]
        heapify(self._running)
        self._mode = mode


class LockStepReplica(Replica):
    """All requests share every step. `_done`: steps at time `_since`, the last known step boundary."""

    __slots__ = ()

    def arrive(self, now: float, i: int) -> None:
        self.in_flight += 1
        self._waiting.append(i)
        if len(self._running) < self._task_class.max_running:
            ahead, at = 0.0, max(now, self._since)
            if self._running and now > self._since:
                ahead = math.ceil((now - self._since) / self._step_s - _EPS)
                at = self._since + ahead * self._step_s
            if at < self.next_s:
                self.next_s, self._ahead = at, ahead

    def run(self, now: float) -> list[int]:
        self._done += self._ahead
        running, ended = self._running, []
        self._count(len(running), now - self._since)
        while running and running[0][0] <= self._done + _EPS:
            i = heappop(running)[1]
            self._leave(i, now)
            ended.append(i)
        self._since = now
        if self._waiting and len(running) < self._task_class.max_running:
            self._prefill(now)
        self._plan()
        return ended

    def _prefill(self, now: float) -> None:
        """A step that starts as many requests as fit, and advances the others by one step."""
        arm, waiting, before = self._task_class.arm, self._waiting, len(self._running)
        tokens, joined = 0.0, list[int]()
        while waiting and before + len(joined) < self._task_class.max_running:
            more = self._log.prompt_tokens[waiting[0]]
            if joined and tokens + more > arm.prefill_tokens:
                break
            tokens += more
            joined.append(waiting.popleft())
        self._done += 1.0
        for i in joined:
            heappush(self._running, (self._done + self._enter(i), i))
        lasts_s = arm.prefill_s(tokens)
        if before:
            whole_s = self._step(before + len(joined))
            lasts_s = max(lasts_s + whole_s - self._step(len(joined)), whole_s)
        self._since = now + lasts_s
        self._count(len(self._running), self._since - now)
        for i in joined:
            self._log.first_s[i] = self._since

    def _plan(self) -> None:
        running = len(self._running)
        if not running:
            self.next_s, self._context = math.inf, 0.0  # reset accumulated rounding errors
            return
        self._switch(running)
        self._step_s = self._step(running)
        self._ahead = 0.0
        if not (self._waiting and running < self._task_class.max_running):
            self._ahead = max(math.ceil(self._running[0][0] - self._done - _EPS), 0.0)
        self.next_s = self._since + self._ahead * self._step_s


class DisaggregatedReplica(Replica):
    """Every request has its own steps, with a duration by the number of requests; a prefill slows no other."""

    __slots__ = ("_prefills",)

    def __init__(self, task_class: TaskClass, log: RequestLog) -> None:
        super().__init__(task_class, log)
        self._prefills: list[tuple[float, int]] = []

    def arrive(self, now: float, i: int) -> None:
        self.in_flight += 1
        if len(self._running) + len(self._prefills) < self._task_class.max_running:
            self._advance(now)
            self._begin(now, i)
            self._plan()
        else:
            self._waiting.append(i)

    def run(self, now: float) -> list[int]:
        self._advance(now)
        running, prefills, ended = self._running, self._prefills, []
        while prefills and prefills[0][0] <= now:
            i = heappop(prefills)[1]
            self._log.first_s[i] = now
            heappush(running, (self._done + math.ceil(self._enter(i) - _EPS), i))
        while running and running[0][0] <= self._done + _EPS:
            i = heappop(running)[1]
            self._leave(i, now)
            ended.append(i)
        while self._waiting and len(running) + len(prefills) < self._task_class.max_running:
            self._begin(now, self._waiting.popleft())
        self._plan()
        return ended

    def _advance(self, now: float) -> None:
        self._count(len(self._running) + len(self._prefills), now - self._since)
        self._done += (now - self._since) / self._step_s
        self._since = now

    def _begin(self, now: float, i: int) -> None:
        heappush(self._prefills, (now + self._task_class.arm.prefill_s(self._log.prompt_tokens[i]), i))

    def _plan(self) -> None:
        number = len(self._running) + len(self._prefills)
        self._switch(number)
        self._step_s = self._step(number)
        next_s = self._prefills[0][0] if self._prefills else math.inf
        if self._running:
            left = max(self._running[0][0] - self._done, 0.0)
            next_s = min(next_s, self._since + left * self._step_s)
        self.next_s = next_s


class PoolReplica(LockStepReplica):
    """A pool: every request of a batch has the mode that adds most to the batch's tokens per second.

    It is as if the engine knew each request's acceptance lengths, which it learns within a few steps. A step takes that
    of the batch without drafts, and what each mode adds for its requests: as much as in a batch of theirs alone, or
    their share of what it adds to a batch of this size, whichever is more.
    """

    __slots__ = ("_counts", "_mode_of", "_new", "_sized")

    def __init__(self, task_class: TaskClass, log: RequestLog) -> None:
        super().__init__(task_class, log)
        self._counts, self._mode_of = [0] * len(task_class.columns), dict[int, int]()
        self._new, self._sized = list[int](), 0

    @property
    def columns(self) -> Sequence[int]:
        """Columns of its modes' acceptance lengths."""
        return self._task_class.columns

    def _enter(self, i: int) -> float:
        self._mode_of[i] = 0
        self._counts[0] += 1
        self._new.append(i)
        return super()._enter(i)

    def _leave(self, i: int, now: float) -> None:
        super()._leave(i, now)
        self._counts[self._mode_of.pop(i)] -= 1

    def placement_cost(self, sampled: bool, tau: Sequence[float]) -> float:
        """What one more request costs all requests here, in seconds for one of its tokens, with its best mode.

        As the router's `LoadModel.placement_cost`: its own step, and what it adds to those of the others. `tau`: of the
        request, by mode, as foreseen.
        """
        n, running, counts = self.in_flight, len(self._running), self._counts
        any_sampled = self._sampled > 0 or any(self._log.sampled[i] for i in self._waiting)
        before_s = self._mixed_s(counts, running, any_sampled) if running else 0.0
        grown, best_s = min(running + 1, self._task_class.max_running), math.inf
        for mode, length in enumerate(tau):
            counts[mode] += 1
            after_s = self._mixed_s(counts, grown, any_sampled or sampled)
            counts[mode] -= 1
            best_s = min(best_s, (after_s + n * max(after_s - before_s, 0.0)) / length)
        return best_s * max((n + 1) / self._task_class.max_running, 1.0)

    def _step(self, running: int) -> float:
        return self._mixed_s(self._counts, running, self._sampled > 0)

    def _mixed_s(self, counts: Sequence[int], running: int, sampled: bool) -> float:
        context = self._context / max(len(self._running), 1)
        plain, *others = self._task_class.steps
        whole_s = plain(running, context, sampled)
        added_s = 0.0
        for steps, n in zip(others, counts[1:], strict=True):
            if n:
                own_s = steps(n, context, sampled) - plain(n, context, sampled)
                shared_s = n / running * (steps(running, context, sampled) - whole_s) if n < running else own_s
                added_s += max(own_s, shared_s, 0.0)
        return whole_s + added_s

    def _switch(self, running: int) -> None:
        """Choose the modes of new requests; of all, when the batch has grown or shrunk to another order of size."""
        moved = [i for i in self._new if i in self._mode_of]
        if running.bit_length() != self._sized:
            moved, self._sized = [i for _, i in self._running], running.bit_length()
        self._new = []
        if not moved:
            return
        tau, columns, counts, before = self._log.tau, self._task_class.columns, self._counts, dict(self._mode_of)
        tokens, sampled = sum(float(tau[i, columns[mode]]) for i, mode in self._mode_of.items()), self._sampled > 0
        for i in moved:
            own = self._mode_of[i]
            tokens -= float(tau[i, columns[own]])
            counts[own] -= 1
            best, speed = 0, -math.inf
            for mode, column in enumerate(columns):
                counts[mode] += 1
                if (would := (tokens + float(tau[i, column])) / self._mixed_s(counts, running, sampled)) > speed:
                    best, speed = mode, would
                counts[mode] -= 1
            self._mode_of[i] = best
            counts[best] += 1
            tokens += float(tau[i, columns[best]])
        done, mode_of = self._done, self._mode_of
        self._running = [
            (done + (at - done) * float(tau[i, columns[before[i]]] / tau[i, columns[mode_of[i]]]), i)
            for at, i in self._running
        ]
        heapify(self._running)


def replica(task_class: TaskClass, log: RequestLog) -> Replica:
    """Create an idle replica of an arm."""
    if task_class.arm.pool:
        return PoolReplica(task_class, log)
    return LockStepReplica(task_class, log) if task_class.arm.lock_step else DisaggregatedReplica(task_class, log)
