"""The last attempts in memory, and sums over them, for the operators' page. Keeps no request text."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice, takewhile
from typing import Any, NamedTuple

import numpy as np

from draftpick.router.types import Attempt, Decision, Outcome

KEPT = 500
"""Number of attempts kept."""
_RATE_WINDOW_S = 60.0
ClusterId = tuple[str, int] | None
"""The cluster of a request: policy id, and the cluster's index under that policy."""


class WindowTotals(NamedTuple):
    """Sums over attempts. Times in seconds; decoding times exclude the first token.

    `steps`: decoding steps of answers with known acceptance, for `step_tokens`. `predicted_s`: prediction for answers
    that took `measured_s`. `saved_s`: predicted time on the baseline engine, `baseline_s`, minus measured time; 0 for
    answers of the baseline engine itself.
    """

    attempts: float = 0.0
    failed: float = 0.0
    output_tokens: float = 0.0
    starts: float = 0.0
    start_s: float = 0.0
    decode_tokens: float = 0.0
    decode_s: float = 0.0
    step_tokens: float = 0.0
    steps: float = 0.0
    predicted_s: float = 0.0
    measured_s: float = 0.0
    saved_s: float = 0.0
    baseline_s: float = 0.0

    def means(self) -> dict[str, Any]:
        """The displayed means; None if unknown."""
        return {
            "attempts": int(self.attempts),
            "failed": int(self.failed),
            "output_tokens": int(self.output_tokens),
            "ttft_s": _ratio(self.start_s, self.starts),
            "tpot_s": _ratio(self.decode_s, self.decode_tokens),
            "acceptance_length": _ratio(self.step_tokens, self.steps),
            "measured_over_predicted": _ratio(self.measured_s, self.predicted_s),
            "saved_s": self.saved_s if self.baseline_s else None,
            "saved_share": _ratio(self.saved_s, self.baseline_s),
        }


class RecentRequest(NamedTuple):
    """One attempt that ended `at` (monotonic clock), processed for display: its row, and its share of the sums."""

    at: float
    arm: str
    cluster: ClusterId
    row: dict[str, Any]
    sums: WindowTotals


class RecentRequests:
    """Keeps the last attempts. `ended`: the attempts; the last `num_unprocessed` ones have not been processed yet."""

    def __init__(self, baseline: str, clock: Callable[[], float] = time.perf_counter) -> None:
        """`baseline`: the engine that savings are measured against."""
        self._baseline, self._clock = baseline, clock
        self._pending_ring: deque[tuple[float, Attempt]] = deque(maxlen=KEPT)
        self._processed: deque[RecentRequest] = deque(maxlen=KEPT)
        self.num_unprocessed = 0
        # The same attempts as `_seen`, for sums: their cells, None for shadows; and a ring of their totals.
        self._cells: deque[tuple[str, ClusterId] | None] = deque(maxlen=KEPT)
        self._counts, self._number = np.zeros((KEPT, len(WindowTotals._fields))), 0

    def on_attempt_end(self, attempt: Attempt) -> None:
        """Keep an attempt. It is processed on demand."""
        self.num_unprocessed += 1
        self._pending_ring.append((self._clock(), attempt))

    def processed(self) -> deque[RecentRequest]:
        """All attempts, the oldest first."""
        new, self.num_unprocessed = min(self.num_unprocessed, len(self._pending_ring)), 0
        epoch = time.time() - self._clock()
        for ended in islice(self._pending_ring, len(self._pending_ring) - new, None):
            self._process(_summarise(*ended, baseline=self._baseline, epoch=epoch))
        return self._processed

    def _process(self, one: RecentRequest) -> None:
        self._processed.append(one)
        self._cells.append((one.arm, one.cluster) if one.row["reason"] != "shadow" else None)
        self._counts[self._number % KEPT] = one.sums
        self._number += 1

    def last(self, n: int) -> list[RecentRequest]:
        """The last `n` attempts, the newest first."""
        return list(islice(reversed(self.processed()), n))

    def tokens_per_s(self) -> dict[str, float]:
        """Output tokens per second by arm over the last minute, including shadows."""
        seen, since = self.processed(), self._clock() - _RATE_WINDOW_S
        if not seen:
            return {}
        # If the kept attempts span less than a minute, divide by their span.
        span_s = _RATE_WINDOW_S if len(seen) < KEPT else min(_RATE_WINDOW_S, self._clock() - seen[0].at)
        found: dict[str, float] = {}
        for one in takewhile(lambda one: one.at > since, reversed(seen)):
            found[one.arm] = found.get(one.arm, 0.0) + one.sums.output_tokens / span_s
        return found

    def span_s(self) -> float:
        """Seconds since the oldest kept attempt ended."""
        seen = self.processed()
        return self._clock() - seen[0].at if seen else 0.0

    def sums(self, policy: str) -> dict[tuple[str, int | None], WindowTotals]:
        """Totals of client attempts by arm and cluster.

        `policy`: id of the policy that defines the clusters; None is the cluster of all other attempts.
        """
        self.processed()
        numbers: dict[tuple[str, int | None] | None, int] = {None: 0}
        of: dict[tuple[str, ClusterId] | None, int] = {}
        for cell in dict.fromkeys(self._cells):
            known = None if cell is None else (cell[0], cell[1][1] if cell[1] and cell[1][0] == policy else None)
            of[cell] = numbers.setdefault(known, len(numbers))
        sums = np.zeros((len(numbers), len(WindowTotals._fields)))
        ring = np.arange(self._number - len(self._cells), self._number) % KEPT
        np.add.at(sums, [of[cell] for cell in self._cells], self._counts[ring])
        return {
            cell: WindowTotals._make(row) for cell, row in zip(numbers, sums.tolist(), strict=True) if cell is not None
        }


def total(parts: Iterable[WindowTotals]) -> WindowTotals:
    """Add totals."""
    return WindowTotals._make(map(sum, zip(WindowTotals(), *parts, strict=True)))


def _summarise(at: float, attempt: Attempt, *, baseline: str, epoch: float) -> RecentRequest:
    decision, outcome = attempt.decision, attempt.outcome
    tokens = 0 if outcome.tpot_s is None else (outcome.output_tokens or 1) - 1
    predicted = _predicted(decision, tokens) if tokens else None
    took_s = outcome.tpot_s * tokens if outcome.tpot_s is not None and tokens else None
    shares = decision.probabilities
    row = {
        "time": epoch + at,
        "request_id": attempt.request_id,
        "attempt": attempt.number,
        "arm": decision.arm,
        "propensity": decision.propensity,
        "tried_out": decision.reason == "policy" and shares[decision.arm] < max(shares.values()),
        "policy": decision.policy,
        "reason": decision.reason,
        "status": outcome.status,
        "output_tokens": outcome.output_tokens,
        "acceptance_length": outcome.acceptance_length,
        "drafters": {name: one.steps for name, one in (outcome.drafters or {}).items() if one.steps} or None,
        "ttft_s": outcome.ttft_s,
        "e2e_s": outcome.e2e_s,
        "decode_s": took_s,
        "predicted_decode_s": predicted,
    }
    return RecentRequest(
        at, decision.arm, attempt.cluster, row, _window_totals(decision, outcome, tokens, took_s, predicted, baseline)
    )


def _predicted(decision: Decision, tokens: int) -> dict[str, float] | None:
    """Predicted seconds by arm for `tokens` tokens after the first, including corrections."""
    tpot_s, shift = decision.predicted_tpot_s, decision.residual
    if tpot_s is None:
        return None
    factors = [1.0] * len(tpot_s) if shift is None else map(math.exp, shift)
    return {a: s * f * tokens for a, s, f in zip(decision.probabilities, tpot_s, factors, strict=True)}


def _window_totals(
    decision: Decision,
    outcome: Outcome,
    tokens: int,
    took_s: float | None,
    predicted: dict[str, float] | None,
    baseline: str,
) -> WindowTotals:
    """The totals of one attempt."""
    counts = 1, outcome.failed, outcome.output_tokens or 0, outcome.ttft_s is not None, outcome.ttft_s or 0.0
    if outcome.status != "ok" or took_s is None:
        return WindowTotals(*counts)
    tau = outcome.acceptance_length
    decoding = tokens, took_s, *((tokens, tokens / tau) if tau else (0, 0.0))
    if predicted is None or decision.reason != "policy" or decision.arm not in predicted:
        return WindowTotals(*counts, *decoding)
    plain_s = predicted.get(baseline, took_s) if decision.arm != baseline else took_s
    return WindowTotals(*counts, *decoding, predicted[decision.arm], took_s, plain_s - took_s, plain_s)


def _ratio(over: float, under: float) -> float | None:
    return over / under if under else None
