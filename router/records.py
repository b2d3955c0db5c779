"""Records on disk: JSON Lines segments, written by a separate thread. The request path only appends to a queue.

Schema 2 is a public interface: one object per line, the vector as base64 of little-endian float32. Schema 1, which
differs only in names, is readable as well.
"""

import base64
import contextlib
import hashlib
import os
import platform
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import fields as fields_of
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import orjson
from pydantic import TypeAdapter, ValidationError

from draftpick.engines.atomic_write import atomic_write
from draftpick.engines.pool.forecast import Forecast as DrafterForecast
from draftpick.engines.pool.report import DrafterReport
from draftpick.router.config.router_config import RecordsConfig
from draftpick.router.features.lexical import stored_context
from draftpick.router.types import Attempt, Decision, LoadTerms, Outcome, PredictionTokens, Record, Turn

SCHEMA = 2
SCHEMA_1_FIELDS = {"load": "in_flight"}
SCHEMA_1_DECISION = {
    "explore": "exploration_rate",
    "shift": "residual",
    "alone": "unloaded_arm",
    "beside": "other_policy_probabilities",
}
SCHEMA_1_LOAD = {
    "stretch": "slowdown",
    "price": "objective_weight",
    "known_tokens": "cached_prefix_tokens",
    "read_price": "prefill_weight",
}
SCHEMA_1_REASONS = {"continued": "resumed"}
"""Names of schema 1 and the current ones: of a record, its decision, the load of a decision, and reasons."""
SEGMENTS = "records-*.jsonl"
_FLUSH_S = 0.5


_FIELDS = tuple(field.name for field in fields_of(Record))


class RecordWriter:
    """Appends records to segments `records-<time>-<host>-<pid>-<n>.jsonl`; drops and counts records that do not fit."""

    def __init__(self, config: RecordsConfig) -> None:
        if config.dir is None:
            raise ValueError("records.dir is needed")
        self._config, self._dir = config, config.dir
        self._dir.mkdir(parents=True, exist_ok=True)
        self._queue: deque[Record] = deque()
        self._prefix = f"records-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{platform.node()}-{os.getpid()}"
        self._number = 0
        self._segment: int | None = None
        self._segments: deque[Path] = deque()
        """Its own segments; those of another writer with the same name are left alone."""
        self._size = 0
        self._opened = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="records", daemon=True)
        self.written = 0
        self.dropped = 0
        self._thread.start()

    @property
    def folder(self) -> Path:
        """Where the segments are."""
        return self._dir

    def on_attempt_end(self, attempt: Attempt) -> None:
        """Queue the record of an attempt; never blocks."""
        self.write(
            Record(
                request_id=attempt.id,
                client_request_id=attempt.request_id if attempt.request_id != attempt.id else None,
                key=_key_digest(attempt.key) if attempt.key else "",
                attempt=attempt.number,
                time=attempt.time,
                path=attempt.path,
                stream=attempt.stream,
                sampling=dict(attempt.sampling),
                in_flight=attempt.in_flight,
                context=attempt.context,
                decision=attempt.decision,
                outcome=attempt.outcome,
                turn=attempt.turn,
                adapter=attempt.adapter,
            )
        )

    def write(self, record: Record) -> None:
        """Queue a record; never blocks."""
        if len(self._queue) >= self._config.queue_size:
            self.dropped += 1
            return
        self._queue.append(record)

    def close(self) -> None:
        """Flush the queue and close the segment."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_FLUSH_S):
            self._flush()
        self._flush()
        self._close_segment()

    def _flush(self) -> None:
        batch = [self._queue.popleft() for _ in range(len(self._queue))]
        if not batch:
            return
        lines = [line for record in batch if (line := _encoded(record)) is not None]
        try:
            self._append(b"".join(lines))
        except OSError:
            # A full or failing disk costs these records, never requests or older records; the next flush tries a new
            # segment.
            self._drop_segment()
            lines = []
        self.written += len(lines)
        self.dropped += len(batch) - len(lines)

    def _append(self, data: bytes) -> None:
        """Write `data` completely or not at all: a partial write on a full disk is truncated."""
        segment = self._current_segment()
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(segment, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(segment, self._size)
            raise
        self._size += len(data)
        while len(self._segments) > self._config.keep_segments:
            self._segments.popleft().unlink(missing_ok=True)

    def _current_segment(self) -> int:
        if self._segment is not None:
            too_old = time.monotonic() - self._opened > self._config.segment_age_s
            if not too_old and self._size < self._config.segment_bytes:
                return self._segment
            self._close_segment()
        self._dir.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        while self._segment is None:
            path = self._dir / f"{self._prefix}-{self._number:06d}.jsonl"
            self._number += 1
            # A writer of another container may have the same host name, process id and time.
            with contextlib.suppress(FileExistsError):
                self._segment = os.open(path, flags, 0o640)
        self._segments.append(path)
        self._size, self._opened = 0, time.monotonic()
        return self._segment

    def _drop_segment(self) -> None:
        """Close the segment after an error, and remove it if nothing was written to it."""
        if self._segment is not None and not self._size:
            self._segments.pop().unlink(missing_ok=True)
        self._close_segment()

    def _close_segment(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            with contextlib.suppress(OSError):
                os.close(segment)


@lru_cache(maxsize=1024)
def _key_digest(key: str) -> str:
    """A short digest of a key's name: enough to tell keys apart, without naming anybody."""
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def encode(record: Record) -> bytes:
    """One line of JSON, with its newline; without the fields of sessions and adapters where there are none."""
    fields = {name: value for name in _FIELDS if (value := getattr(record, name)) or name not in ("turn", "adapter")}
    if (context := record.context) is not None:  # the vector contains all other fields of a context
        fields["context"] = {"vector": context.vector, "featurizer": context.featurizer}
    return orjson.dumps(fields, default=_vector, option=orjson.OPT_APPEND_NEWLINE)


def _encoded(record: Record) -> bytes | None:
    """The line of a record; None for one that has no line, such as text that is not Unicode."""
    try:
        return encode(record)
    except (TypeError, ValueError):
        return None


def _vector(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return base64.b64encode(np.asarray(value, "<f4").tobytes()).decode()
    raise TypeError(f"cannot record {type(value).__name__}")


def decode(line: bytes) -> Record:
    """The record in a line, under current names. Raises `ValueError` for a damaged line or an unknown schema."""
    fields = orjson.loads(line)
    schema = fields.get("schema") if isinstance(fields, dict) else None
    if schema not in (1, SCHEMA):
        raise ValueError(f"not a record of schema {SCHEMA} or 1")
    try:
        if schema == 1:
            fields = _from_schema_1(fields)
        context = fields.pop("context")
        if context is not None:
            vector = np.frombuffer(base64.b64decode(context["vector"], validate=True), "<f4").astype(np.float32)
            context = stored_context(vector, str(context["featurizer"]), fields.get("sampling"))
        typed = _typed(fields)
        decision = fields.pop("decision")
        if (load := decision.get("load")) is not None:
            decision["load"] = LoadTerms(**load)
        if (forecast := decision.get("forecast")) is not None:
            decision["forecast"] = DrafterForecast(**forecast)
        outcome = fields.pop("outcome")
        if (drafters := outcome.get("drafters")) is not None:
            outcome["drafters"] = {name: DrafterReport(**one) for name, one in drafters.items()}
        if (prediction := outcome.get("prediction")) is not None:
            outcome["prediction"] = PredictionTokens(**prediction)
        if (turn := fields.get("turn")) is not None:
            fields["turn"] = Turn(**turn)
        record = Record(
            context=context,
            decision=Decision(**decision),
            outcome=Outcome(**outcome),
            **fields,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"damaged record: {error}") from error
    return replace(record, **typed)


_TYPES = {name: TypeAdapter(hint) for name, hint in get_type_hints(Record).items() if name != "context"}


def _typed(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a line with the types of a record's, but for its context. Raises `ValueError` for others."""
    found = {}
    for name in _TYPES.keys() & fields.keys():
        try:
            found[name] = _TYPES[name].validate_python(fields[name])
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(map(str, (name, *first["loc"])))
            raise ValueError(f"damaged record: {where}: {first['msg']}") from None
    return found


def _from_schema_1(fields: dict[str, Any]) -> dict[str, Any]:
    renamed = _renamed(fields, SCHEMA_1_FIELDS)
    decision = _renamed(fields["decision"], SCHEMA_1_DECISION)
    if (reason := decision.get("reason")) in SCHEMA_1_REASONS:
        decision["reason"] = SCHEMA_1_REASONS[reason]
    if (load := decision.get("load")) is not None:
        # The oldest lines lack the weight of a second of prefill.
        unweighted = {"prefill_weight": [1.0] * len(load["price"])}
        decision["load"] = unweighted | _renamed(load, SCHEMA_1_LOAD)
    return {**renamed, "decision": decision, "schema": SCHEMA}


def _renamed(fields: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in fields.items()}


def decode_lines(data: bytes) -> tuple[list[Record], list[bytes]]:
    """The records in complete lines, and the damaged lines. A time in the future, of a wrong clock, becomes now."""
    records, damaged, now = list[Record](), list[bytes](), time.time()
    for line in data.split(b"\n"):
        try:
            if line:
                record = decode(line)
                records.append(record if record.time <= now else replace(record, time=now))
        except ValueError:
            damaged.append(line)
    return records, damaged


def read(folder: Path) -> Iterator[Record]:
    """All records below a folder in order of their segments; skips damaged lines, and a torn last line of a segment."""
    for path in sorted(folder.glob(SEGMENTS)):
        with path.open("rb") as segment:
            for line in segment:
                with contextlib.suppress(ValueError):
                    if line.endswith(b"\n"):
                        yield decode(line)


class Repair(NamedTuple):
    """Lines of one segment: its records, and those that were moved to `<segment>.damaged`."""

    segment: Path
    records: int
    damaged: int


def repair(folder: Path, min_age_s: float, *, dry_run: bool = False) -> list[Repair]:
    """Move damaged lines out of the segments of a folder; returns the segments that have some. Raises OSError.

    Segments written within `min_age_s` are skipped: a router may still append to them.
    """
    found = []
    for path in sorted(folder.glob(SEGMENTS)):
        if time.time() - path.stat().st_mtime < min_age_s:
            continue
        lines = path.read_bytes().split(b"\n")
        damaged = [line for line in lines if line and decode_lines(line)[1]]
        if not damaged:
            continue
        kept = [line for line in lines if line and line not in set(damaged)]
        found.append(Repair(path, len(kept), len(damaged)))
        if not dry_run:
            with path.with_name(f"{path.name}.damaged").open("ab") as aside:
                aside.writelines(line + b"\n" for line in damaged)
            atomic_write(path, b"".join(line + b"\n" for line in kept), durable=True)
    return found
