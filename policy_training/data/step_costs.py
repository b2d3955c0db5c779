"""Times of a decoding step on every arm: they depend on hardware and load, not on the text.

    time of a request = TTFT + (tokens - 1) * step / tau        TTFT = start + prompt tokens * per token

Policies learn tau from text; these times are profiled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.dataset import Dataset, DatasetError
from draftpick.router.policies.pool_arms import column_of
from draftpick.router.types import Outcome

Floats = npt.NDArray[np.float64]
_MIN_ANSWERS = 4


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds. `step_s` [arms, 2]: of a step, greedy and sampled; `start_s`, `per_token_s` [arms]: of a TTFT."""

    arms: tuple[str, ...]
    step_s: Floats
    start_s: Floats
    per_token_s: Floats

    @classmethod
    def fit(cls, data: Dataset, arms: Sequence[str]) -> "Costs":
        """Fit to live measurements: medians of TPOT times tau, of unloaded requests if load is known, and a line
        through the TTFTs.

        Requests measured under all arms are compared pairwise, so that drift of the machine's speed favours no arm. A
        sampling mode (greedy, sampled) without measurements takes the other's costs. Raises `DatasetError` for an arm
        with fewer than four measurements.
        """
        timed = [_timed(data, arm) for arm in arms]
        step_s = np.zeros((len(arms), 2))
        lines = [_line(rows[:, 1], rows[:, 0]) for rows in (np.asarray([t[2:4] for t in arm]) for arm in timed)]
        for half in (False, True):
            halves = [[t for t in arm if t.sampled == half] or arm for arm in timed]
            step_s[:, int(half)] = np.exp(_levels([{t.prompt_id: np.log(t.step_s) for t in arm} for arm in halves]))
        return cls(tuple(arms), step_s, np.asarray([at for _, at in lines]), np.asarray([slope for slope, _ in lines]))

    def select(self, arms: Sequence[str]) -> "Costs":
        """Costs of these arms, in this order; a pool's arm may take those of its drafter in an engine of its own.

        Raises `DatasetError` for an arm without costs.
        """
        found = {arm: column_of(arm, self.arms) for arm in arms}
        if unknown := [arm for arm, row in found.items() if row is None]:
            raise DatasetError(f"no costs of {', '.join(unknown)} (known: {', '.join(self.arms)})")
        rows = [row for row in found.values() if row is not None]
        return Costs(tuple(arms), self.step_s[rows], self.start_s[rows], self.per_token_s[rows])

    def slower(self, times: float) -> "Costs":
        """Costs of a machine that is slower by a factor."""
        return Costs(self.arms, *(times * getattr(self, name) for name in ARRAYS))

    def time_s(self, tau: Floats, prompt_tokens: Floats, tokens: Floats, sampled: npt.NDArray[np.bool_]) -> Floats:
        """Seconds [n, arms] of requests with acceptance lengths `tau` [n, arms] and these numbers of tokens [n]."""
        ttft = self.start_s + prompt_tokens[:, None] * self.per_token_s
        return np.asarray(ttft + (tokens[:, None] - 1) * self.step_s.T[sampled.astype(int)] / tau)

    def as_json(self) -> dict[str, Any]:
        return {"arms": list(self.arms), **{k: getattr(self, k).tolist() for k in ARRAYS}}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Costs":
        """Read the output of `as_json`. Raises `DatasetError`."""
        try:
            arms, arrays = tuple(fields["arms"]), [np.asarray(fields[name], np.float64) for name in ARRAYS]
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"invalid costs: {error}") from error
        shapes = [(len(arms), 2), (len(arms),), (len(arms),)]
        if [a.shape for a in arrays] != shapes or not all(np.isfinite(a).all() for a in arrays):
            raise DatasetError("costs must have two finite step times and a TTFT line for every arm")
        return cls(arms, *arrays)


ARRAYS = ("step_s", "start_s", "per_token_s")


class _Timed(NamedTuple):
    """Timed values of one measurement."""

    prompt_id: str
    step_s: float
    ttft_s: float
    prompt_tokens: int
    sampled: bool


def _timed(data: Dataset, arm: str) -> list[_Timed]:
    """The timed measurements of an arm. Raises `DatasetError` for too few."""
    found = [
        _Timed(
            m.prompt_id,
            o.tpot_s * (o.acceptance_length or 1.0) / m.slowdown,
            _served_s(o),
            o.prompt_tokens or 0,
            m.temperature > 0,
        )
        for m in data.measurements
        if m.arm == arm and m.source != "replay" and (o := m.outcome).status == "ok" and o.tpot_s and o.ttft_s
    ]
    if len(found) < _MIN_ANSWERS:
        raise DatasetError(f"arm {arm!r} has {len(found)} timed measurements: at least {_MIN_ANSWERS} are needed")
    return found


def _served_s(outcome: Outcome) -> float:
    """Seconds from sending a request to its engine to the first token, without queueing there."""
    return (outcome.ttft_s or 0.0) - (outcome.overhead_s or 0.0) - (outcome.queue_s or 0.0)


def _levels(values: Sequence[Mapping[str, float]]) -> Floats:
    """A level for each arm [arms], of its values by request: medians over the requests common to all arms, centred per
    request; medians of all of an arm's values if there are few such requests."""
    common = sorted(set.intersection(*(set(arm) for arm in values)))
    if len(common) < _MIN_ANSWERS:
        return np.asarray([np.median(list(arm.values())) for arm in values])
    table = np.asarray([[arm[i] for arm in values] for i in common])
    middle = np.median(table, axis=1, keepdims=True)
    return np.asarray(np.median(middle) + np.median(table - middle, axis=0))


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope and intercept of the median line through points (Theil-Sen); neither is below 0."""
    from scipy.stats import theilslopes

    if np.ptp(x) == 0:
        return 0.0, float(np.median(y))
    slope = max(float(theilslopes(y, x).slope), 0.0)
    start = float(np.median(y - slope * x))
    return (slope, start) if start >= 0 else (float(np.median(y / np.maximum(x, 1.0))), 0.0)
