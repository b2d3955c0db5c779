"""Measured times of an engine's decoding steps on its machine, by sampling mode, batch, context and verified rows.

A profile is JSON, schema 2; schema 1 is read. An engine serves its own at `GET /draftpick/profile`.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import from_json

from draftpick.engines.errors import DraftpickError

SCHEMA = 2
PATH = "/draftpick/profile"
_MAX_COUNT = 2**31
GREEDY, SAMPLED, TRUNCATED = 0, 1, 2
MODES = ("greedy", "sampled", "truncated")
"""Sampling modes; `truncated`: sampled within top_p, top_k or min_p, for which engines may sort the vocabulary."""

FURTHER_ROW = 0.15
"""Time of a pool's drafter for one more request in a step, relative to that for the first."""


def sampling_mode(sampling: Mapping[str, float | None]) -> int:
    """The mode of a request with these sampling fields; OpenAI's default is temperature 1."""
    temperature, top_p, top_k = (sampling.get(name) for name in ("temperature", "top_p", "top_k"))
    if temperature is not None and temperature <= 0:
        return GREEDY
    return TRUNCATED if (top_p is not None and top_p < 1) or (top_k is not None and top_k > 0) else SAMPLED


class ProfileError(DraftpickError):
    """A profile is unreadable or its measurement failed."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured times of one engine, in seconds.

    `build`: hash of target, drafter, arguments and versions; `machine`: where it was measured.
    `step_s[mode][batch][context]`: of a decoding step in each of `MODES`, with `batches` running requests of `contexts`
    tokens each; nondecreasing along both. A profile of schema 1 has two tables, the second of them measured with top_p.
    `prefill_s` and `prefill_s_per_token`: time to the first token. `max_running`: maximum concurrent requests; more of
    them wait. `verify_s[mode][rows - 1]`: of a step of one request that verifies 1 row and more, to the longest draft
    seen; empty if the engine does not draft, always drafts the same number of tokens, or does not report its steps.
    `disagreement`: relative difference of the two passes of the measurement at the median point; None: unknown.
    `drafter_s`: of a pool, additional seconds by drafter of a step of one request that this drafter drafts in full, and
    of its verification; `step_s` is then without drafts.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    build: str
    machine: str
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    step_s: tuple[tuple[tuple[float, ...], ...], ...]
    prefill_s: float
    prefill_s_per_token: float
    max_running: int
    verify_s: tuple[tuple[float, ...], ...] = ()
    disagreement: float | None = None
    drafter_s: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, grid in (("batches", self.batches), ("contexts", self.contexts)):
            if not grid or list(grid) != sorted(set(grid)) or grid[0] < 0 or grid[-1] >= _MAX_COUNT:
                raise ProfileError(f"{name} must be increasing numbers, not {list(grid)}")
        if self.batches[0] != 1:
            raise ProfileError("batches must start with 1")
        rows = [row for table in self.step_s for row in table]
        if len(self.step_s) not in (2, 3) or any(len(table) != len(self.batches) for table in self.step_s):
            raise ProfileError("step_s must have two or three tables with one row per batch")
        if any(len(row) != len(self.contexts) for row in rows) or not all(map(_is_time, chain(*rows))):
            raise ProfileError("step_s must have one positive number of seconds per context")
        if not all(map(_is_time, chain(*self.verify_s))):
            raise ProfileError("verify_s must have positive numbers of seconds")
        if not all(0 <= s < 1e6 for s in self.drafter_s.values()):
            raise ProfileError("drafter_s must have seconds by drafter, not negative")
        if not (
            0 <= self.prefill_s < 1e6 and 0 <= self.prefill_s_per_token < 1e6 and 1 <= self.max_running < _MAX_COUNT
        ):
            raise ProfileError("prefill_s and prefill_s_per_token must not be negative, max_running at least 1")

    def step(self, running: float, context: float = 0.0, mode: int = GREEDY) -> float:
        """Seconds of a step with `running` requests; linear between the measured points and beyond them."""
        table, (at, share) = self.step_s[min(mode, len(self.step_s) - 1)], _between(self.contexts, context)
        column = [row[at] + share * (row[min(at + 1, len(row) - 1)] - row[at]) for row in table]
        at, share = _between(self.batches, max(running, 1.0))
        return column[at] + share * (column[min(at + 1, len(column) - 1)] - column[at])

    def with_drafter(self, drafter: str | None) -> "Profile":
        """Return the profile of a pool's arm: steps that include this drafter's; of other engines, this profile."""
        added_s = self.drafter_s.get(drafter, 0.0) if drafter is not None else 0.0
        if not added_s:
            return self
        step_s = tuple(tuple(tuple(s + added_s for s in row) for row in table) for table in self.step_s)
        return replace(self, step_s=step_s)

    def drafters_step_s(self, rows: Mapping[str, int]) -> float:
        """Additional seconds of a step in which so many requests have each of a pool's drafters: a drafter runs once
        for all its requests, a little longer for each further one."""
        return sum(
            self.drafter_s.get(drafter, 0.0) * (1.0 + FURTHER_ROW * (n - 1)) for drafter, n in rows.items() if n > 0
        )

    def as_json(self) -> dict[str, Any]:
        fields = {"schema": SCHEMA, **asdict(self)}
        return fields if self.drafter_s else {name: value for name, value in fields.items() if name != "drafter_s"}

    @classmethod
    def from_json(cls, data: bytes | str) -> "Profile":
        """Parse the JSON form. Raises `ProfileError`."""
        try:
            fields = from_json(data)
            if fields.pop("schema") not in (1, SCHEMA):
                raise ProfileError(f"unsupported profile schema; this version reads 1 and {SCHEMA}: measure it again")
            return _PAGE.validate_python(fields)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            raise ProfileError(f"invalid profile: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ProfileError(f"invalid profile: {error}") from error


_PAGE = TypeAdapter(Profile)


def _is_time(seconds: float) -> bool:
    """True if ratios of such times are finite."""
    return 1e-9 <= seconds < 1e6


def _between(grid: Sequence[int], value: float) -> tuple[int, float]:
    """Return (index of the point below, fraction of the way to the next); extrapolates along the last line."""
    if len(grid) == 1 or value <= grid[0]:
        return 0, 0.0
    at = min(bisect_right(grid, value), len(grid) - 1) - 1
    return at, (value - grid[at]) / (grid[at + 1] - grid[at])
