"""Measurements of requests under arms: typed, versioned, in Parquet. Prompt text is not stored.

A dataset is a Parquet file or a folder of them, schema 3; schema 2, which differs in names alone, is readable, too. A
row is a request: its properties, its contexts (one per featurizer), and its measurements, one per condition. Rows come
from `collect`, from counterfactual replay (`label`), and from the router's records.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from draftpick.engines.atomic_write import atomic_path
from draftpick.policy_training.workloads import Prompt
from draftpick.router.types import Outcome, Vector

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = 3
SCHEMA_2_NAMES = {"kind": "task", "loops": "degenerate_repetition", "stretch": "slowdown"}
"""Columns and fields of schema 2, each with its name of today."""
Source = Literal["live", "replay", "record"]
"""Measured live on an engine, replayed from the target's answer, or logged by the router."""


class DatasetError(ValueError):
    """Data is unusable for training: the problem and its location."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One request under one arm. `label` is the condition: an arm's name, or `policy` if the router chose `arm`.

    `in_flight`: requests on the engines at the time, including this one. `degenerate_repetition`: whether the answer
    repeats some eight words, which favours drafters that copy; None: not checked. `propensity`: probability of the
    chosen arm, and `time`: seconds since the epoch, both of records only. `tau_by_length`: acceptance length by
    replayed draft length. `slowdown`: of its steps by load, as known to the router. `alignment`: similarity of the
    drafter's own answer to the target's, by statistic, in [0, 1]. `prompt_source`: data set that the prompt is from;
    empty: unknown.
    """

    prompt_id: str
    task: str
    label: str
    arm: str
    temperature: float
    max_tokens: int
    outcome: Outcome
    degenerate_repetition: bool | None = None
    source: Source = "live"
    in_flight: int = 1
    propensity: float | None = None
    tau_by_length: Mapping[int, float] = field(default_factory=dict)
    alignment: Mapping[str, float] = field(default_factory=dict)
    time: float = 0.0
    slowdown: float = 1.0
    prompt_source: str = ""

    @classmethod
    def from_prompt(cls, prompt: Prompt, label: str, arm: str, outcome: Outcome, **more: Any) -> "Measurement":
        """Create the measurement of a prompt."""
        sampling, more = (prompt.temperature, prompt.max_tokens), {"prompt_source": prompt.source, **more}
        return cls(prompt.id, prompt.kind, label, arm, *sampling, outcome, **more)


Contexts = Mapping[str, Mapping[str, Vector]]
"""Feature vectors by prompt id and by featurizer."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Measurements, the contexts of their requests, and the dropped rows, counted by reason."""

    measurements: tuple[Measurement, ...]
    contexts: Contexts = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def arms(self) -> list[str]:
        """Conditions with a given arm, sorted; without `policy`."""
        return sorted({m.label for m in self.measurements if m.label == m.arm})

    @property
    def featurizers(self) -> list[str]:
        """Featurizers with contexts, sorted."""
        return sorted({name for m in self.measurements for name in self.contexts.get(m.prompt_id, ())})

    def __add__(self, other: "Dataset") -> "Dataset":
        dropped = {k: self.dropped.get(k, 0) + other.dropped.get(k, 0) for k in {*self.dropped, *other.dropped}}
        return Dataset(self.measurements + other.measurements, {**self.contexts, **other.contexts}, dropped)


_MAPS = ("tau_by_length", "alignment")
_CELL = ("label", "arm", "degenerate_repetition", "source", "in_flight", "propensity", "time", "slowdown")
_PROMPT_FIELDS = ("prompt_id", "task", "temperature", "max_tokens", "prompt_source")
_ELSEWHERE = frozenset({"drafters", "prediction"})
_OUTCOME = tuple(f for f in fields(Outcome) if f.name not in _ELSEWHERE)
"""Fields of an outcome in a file; what a pool's drafters did becomes measurements of their arms, and answers with a
prediction are no measurements."""
_OPTIONAL = frozenset({"prompt_source"})
"""Columns that older files of schema 3 lack."""


@cache
def _schema() -> "pa.Schema":
    """The columns of a file. Built where one is read or written: measurements are used without pyarrow, too."""
    import pyarrow as pa

    text, count, number = pa.string(), pa.int32(), pa.float64()
    of_outcome: dict[str, Any] = {"status": text, "http_status": count, "prompt_tokens": count, "output_tokens": count}
    measured = pa.struct(
        [
            ("label", text),
            ("arm", text),
            ("outcome", pa.struct([(f.name, of_outcome.get(f.name, number)) for f in _OUTCOME])),
            ("degenerate_repetition", pa.bool_()),
            ("source", text),
            ("in_flight", count),
            ("propensity", number),
            ("time", number),
            ("slowdown", number),
            ("tau_by_length", pa.map_(count, pa.float32())),
            ("alignment", pa.map_(text, pa.float32())),
        ]
    )
    row = [
        ("prompt_id", text),
        ("task", text),
        ("temperature", number),
        ("max_tokens", count),
        ("prompt_source", text),
        ("contexts", pa.map_(text, pa.list_(pa.float32()))),
        ("measured", pa.list_(measured)),
    ]
    return pa.schema(row, metadata={"draftpick_schema": str(SCHEMA)})


def save(path: Path, measurements: Iterable[Measurement], contexts: Contexts | None = None) -> None:
    """Write one Parquet file atomically. Rows keep the order of the prompts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(_rows(measurements, contexts or {}), schema=_schema())
    with atomic_path(path) as scratch:
        pq.write_table(table, scratch, compression="zstd")


def _rows(measurements: Iterable[Measurement], contexts: Contexts) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for m in measurements:
        vectors = [(name, vector) for name, vector in contexts.get(m.prompt_id, {}).items()]
        shared = {name: getattr(m, name) for name in _PROMPT_FIELDS}
        row = rows.setdefault(m.prompt_id, {**shared, "contexts": vectors, "measured": []})
        fields_of = {f: getattr(m, f) for f in _CELL}
        maps = {f: sorted(getattr(m, f).items()) for f in _MAPS}
        row["measured"].append({**fields_of, **maps, "outcome": {f.name: getattr(m.outcome, f.name) for f in _OUTCOME}})
    return list(rows.values())


def load(*paths: Path) -> Dataset:
    """Read the output of `save`: files, and folders of them. Raises `DatasetError` with the file and the problem."""
    files = [file for path in paths for file in (sorted(path.glob("*.parquet")) if path.is_dir() else [path])]
    if not files:
        raise DatasetError(f"{', '.join(map(str, paths))} contains no Parquet file")
    measurements: list[Measurement] = []
    contexts: dict[str, dict[str, Vector]] = {}
    for file in files:
        for row in _read(file):
            vectors = {name: np.asarray(vector, np.float32) for name, vector in row["contexts"] or ()}
            contexts.setdefault(row["prompt_id"], {}).update(vectors)
            measurements += [_measurement(row, cell) for cell in row["measured"]]
    return Dataset(tuple(measurements), contexts)


def _measurement(row: dict[str, Any], cell: dict[str, Any]) -> Measurement:
    shared = {name: row[name] for name in _PROMPT_FIELDS if name in row}
    maps = {name: dict(cell[name] or ()) for name in _MAPS}
    return Measurement(**{**shared, **cell, **maps, "outcome": Outcome(**cell["outcome"])})


def _read(file: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except OSError as error:
        raise DatasetError(f"{file} is not readable: {error.strerror or error}") from error
    except pa.ArrowException as error:
        raise DatasetError(f"{file} is not a Parquet file: {error}") from error
    found = (table.schema.metadata or {}).get(b"draftpick_schema", b"none").decode()
    if found not in ("2", str(SCHEMA)):
        raise DatasetError(f"{file}: schema {found}, this version reads {SCHEMA}, and 2")
    names = SCHEMA_2_NAMES if found == "2" else {}
    table = table.rename_columns([names.get(name, name) for name in table.schema.names])
    if missing := [name for name in _schema().names if name not in (*table.schema.names, *_OPTIONAL)]:
        raise DatasetError(f"{file}: missing columns: {', '.join(missing)}")
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows if names else ():
        row["measured"] = [{names.get(name, name): value for name, value in cell.items()} for cell in row["measured"]]
    return rows


def smallest_featurizer(data: Dataset, featurizer: str | None = None) -> str:
    """Return the given featurizer, or the one with the shortest vectors. Raises `DatasetError`."""
    if featurizer is not None and featurizer not in data.featurizers:
        raise DatasetError(f"no contexts of {featurizer!r} (available: {', '.join(data.featurizers) or 'none'})")
    if not data.featurizers:
        raise DatasetError("the requests have no contexts: use data from `collect`, `label` or records")
    lengths = {name: len(vector) for of_request in data.contexts.values() for name, vector in of_request.items()}
    return featurizer or min(data.featurizers, key=lambda name: lengths[name])


class DatasetParts:
    """A growing folder of Parquet parts: an interrupted run loses only the current part.

    `done`: ids of the prompts already in the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        there = any(folder.glob("*.parquet"))
        self.done = {m.prompt_id for m in load(folder).measurements} if there else set()

    def add(self, measurements: Sequence[Measurement], contexts: Contexts) -> None:
        """Write one part, named after its first prompt: several processes may write into one folder."""
        name = sha256(measurements[0].prompt_id.encode()).hexdigest()[:12]
        save(self._folder / f"part-{name}.parquet", measurements, contexts)

    def pending(self, prompts: Sequence[Prompt], size: int) -> list[Sequence[Prompt]]:
        """Return the prompts missing from the folder, in parts of at most `size`."""
        left = [prompt for prompt in prompts if prompt.id not in self.done]
        return [left[i : i + size] for i in range(0, len(left), size)]
