"""Measurements of arms on prompts, and the matrix that learners read. Prompt text is not among them.

On disk: JSON Lines, schema 1, one measurement a line.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from policy_training.workloads import Prompt
from router.types import Outcome

SCHEMA = 1
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One prompt under one arm. `label` is the condition: an arm's name, or `policy` where the router chose `arm`.

    `loops`: whether the answer says some eight words twice, which flatters drafters that copy; None: not looked at.
    """

    prompt_id: str
    kind: str
    label: str
    arm: str
    temperature: float
    max_tokens: int
    outcome: Outcome
    schema: int = SCHEMA
    loops: bool | None = None

    @classmethod
    def of(cls, prompt: Prompt, label: str, arm: str, outcome: Outcome, loops: bool | None = None) -> "Measurement":
        """The measurement of a prompt."""
        shared = (prompt.id, prompt.kind, label, arm, prompt.temperature, prompt.max_tokens)
        return cls(*shared, outcome, loops=loops)


class DatasetError(ValueError):
    """Data that cannot be learned from: what is wrong, and where."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Times of all arms on the same prompts.

    `time_s` [n, arms]: seconds for the same number of output tokens under every arm; `contexts` [n, d] float32, or
    None; `acceptance_length` [n, arms], 1 where none is reported; `acceptance_rate` [n, arms], NaN where nothing was
    drafted. `dropped`: prompts left out, counted by reason.
    """

    prompt_ids: tuple[str, ...]
    kinds: tuple[str, ...]
    arms: tuple[str, ...]
    time_s: Floats
    acceptance_length: Floats
    acceptance_rate: Floats
    output_tokens: Floats
    temperatures: Floats
    dropped: dict[str, int]
    contexts: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.prompt_ids)


@contextmanager
def writer(path: Path) -> Iterator[Callable[[Measurement], None]]:
    """Writes each measurement as it comes, so that an interrupted run keeps what it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:

        def write(measurement: Measurement) -> None:
            out.write(orjson.dumps(measurement, option=orjson.OPT_APPEND_NEWLINE))
            out.flush()

        yield write


def save(path: Path, measurements: Iterable[Measurement]) -> None:
    """Write measurements as JSON Lines."""
    with writer(path) as write:
        for measurement in measurements:
            write(measurement)


def load(path: Path) -> list[Measurement]:
    """Read what `save` wrote. Raises `DatasetError` with file and line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    return [_decode(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _decode(path: Path, number: int, line: bytes) -> Measurement:
    try:
        fields = orjson.loads(line)
        if fields["schema"] != SCHEMA:
            raise DatasetError(f"{path}:{number}: schema {fields['schema']!r}, this version reads {SCHEMA}")
        return Measurement(**{**fields, "outcome": Outcome(**fields["outcome"])})
    except (KeyError, TypeError, orjson.JSONDecodeError) as error:
        raise DatasetError(f"{path}:{number}: no measurement: {error}") from error


def matrix(measurements: Sequence[Measurement], labels: Sequence[str]) -> Matrix:
    """The prompts that were measured under all `labels`. Raises `DatasetError` when none was."""
    by_prompt: dict[str, dict[str, Measurement]] = {}
    for m in measurements:
        by_prompt.setdefault(m.prompt_id, {})[m.label] = m
    dropped: Counter[str] = Counter()
    rows = []
    for cells in by_prompt.values():
        if reason := _unusable(cells, labels):
            dropped[reason] += 1
        else:
            rows.append([cells[label] for label in labels])
    if not rows:
        raise DatasetError(f"no prompt was measured under all of {list(labels)} (dropped: {dict(dropped)})")
    outcomes = [[m.outcome for m in row] for row in rows]
    tokens = np.asarray([[o.output_tokens or 0 for o in row] for row in outcomes], np.float64)
    first = [row[0] for row in rows]
    return Matrix(
        prompt_ids=tuple(m.prompt_id for m in first),
        kinds=tuple(m.kind for m in first),
        arms=tuple(labels),
        time_s=_times(outcomes, np.median(tokens, axis=1)),
        acceptance_length=np.asarray([[o.acceptance_length or 1.0 for o in row] for row in outcomes], np.float64),
        acceptance_rate=np.asarray([[o.acceptance_rate for o in row] for row in outcomes], np.float64),
        output_tokens=tokens,
        temperatures=np.asarray([m.temperature for m in first]),
        dropped=dict(dropped),
    )


def _unusable(cells: dict[str, Measurement], labels: Sequence[str]) -> str | None:
    """Why a prompt is left out; None when every label has a usable measurement."""
    for label in labels:
        if label not in cells:
            return f"missing:{label}"
        outcome = cells[label].outcome
        if outcome.status != "ok":
            return f"{outcome.status}:{label}"
        if outcome.tpot_s is None or outcome.ttft_s is None:
            return f"too_short:{label}"
    return None


def _times(outcomes: list[list[Outcome]], tokens: Floats) -> Floats:
    """Seconds for `tokens[i]` output tokens of prompt i under every arm, since lengths may differ by arm."""
    ttft = np.asarray([[o.ttft_s for o in row] for row in outcomes], np.float64)
    tpot = np.asarray([[o.tpot_s for o in row] for row in outcomes], np.float64)
    return np.asarray(ttft + tpot * (tokens[:, None] - 1))
