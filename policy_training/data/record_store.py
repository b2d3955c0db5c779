"""Reads records from a folder, or any store supported by fsspec (`s3://bucket/records`, `gs://`, `memory://`, ...)."""

import logging
from dataclasses import dataclass, field
from typing import Any

import fsspec

from draftpick.policy_training.data.dataset import DatasetError
from draftpick.router.online.events import EVENTS, Event, decode_events, encode_events
from draftpick.router.records import decode_lines
from draftpick.router.types import Record

log = logging.getLogger("draftpick.records")

_AT_ONCE = 16
"""Segments read between two checks of the record limit."""


@dataclass(slots=True)
class _Segment:
    """The content of a segment up to byte `end`, after a complete line. `damaged`: number of lines skipped."""

    end: int = 0
    records: list[Record] = field(default_factory=list)
    damaged: int = 0


class RecordStore:
    """Segments below `url`, and the events next to them. Raises `DatasetError` if they are not readable."""

    def __init__(self, url: str, workers: int = 0, max_records: int = 100_000) -> None:
        """`workers`: Ray Data tasks that read segments, on the connected Ray cluster; 0: none.

        `max_records`: older segments are skipped beyond this number of records.
        """
        try:
            self._fs, self._root = fsspec.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise DatasetError(f"{url} is not accessible: {error}") from error
        self.url, self._workers, self._max_records = url, workers, max_records
        self._segments: dict[str, _Segment] = {}

    @property
    def damaged(self) -> dict[str, int]:
        """Number of damaged lines that were skipped, by segment."""
        return {name: segment.damaged for name, segment in self._segments.items() if segment.damaged}

    def records(self, since: float = 0.0) -> list[Record]:
        """All records later than `since` (seconds since the epoch), in order of time.

        Reads only the new part of a known segment.
        """
        sizes = self._sizes()
        newest_first, kept = sorted(sizes, reverse=True), dict[str, _Segment]()
        for i in range(0, len(newest_first), _AT_ONCE):
            kept |= self._read({name: sizes[name] for name in newest_first[i : i + _AT_ONCE]})
            if sum(len(segment.records) for segment in kept.values()) >= self._max_records:
                break
        known, self._segments = self.damaged, kept
        for name, lines in self.damaged.items():
            if lines != known.get(name):
                log.warning("%s: %d damaged lines are skipped (draftpick records repair FOLDER)", name, lines)
        found = [r for segment in kept.values() for r in segment.records if r.time > since]
        return sorted(found, key=lambda record: record.time)

    def events(self, since: float = 0.0) -> list[Event]:
        """Events logged by routers later than `since`."""
        path = f"{self._root}/online/{EVENTS}"
        if not self._fs.exists(path):
            return []
        return decode_events(self._fs.cat_file(path), since)

    def append_event(self, event: Event) -> None:
        """Append an event to the routers' log. Raises OSError."""
        folder = f"{self._root}/online"
        self._fs.makedirs(folder, exist_ok=True)
        with self._fs.open(f"{folder}/{EVENTS}", "ab") as file:
            file.write(encode_events([event]))

    def _sizes(self) -> dict[str, int]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._root, detail=True)
        except OSError as error:
            raise DatasetError(f"{self.url} is not readable: {error}") from error
        sizes = {str(one["name"]): int(one["size"]) for one in found}
        segments = {name: size for name, size in sizes.items() if _is_segment(name.rsplit("/", 1)[-1])}
        if not segments:
            raise DatasetError(f"{self.url} contains no records-*.jsonl: check `router.records.dir`")
        return segments

    def _read(self, sizes: dict[str, int]) -> dict[str, _Segment]:
        """Read the new parts of these segments."""
        segments = {name: self._segments.get(name, _Segment()) for name in sizes}
        grown = {name: segments[name].end for name, size in sizes.items() if size > segments[name].end}
        if self._workers and len(grown) > 1:
            added = _on_ray(self._fs, grown, self._workers)
        else:
            added = {name: _added(self._fs, name, start) for name, start in grown.items()}
        for name, (end, records, damaged) in added.items():
            before = segments[name]
            segments[name] = _Segment(end, [*before.records, *records], before.damaged + damaged)
        return segments


def _is_segment(name: str) -> bool:
    return name.startswith("records-") and name.endswith(".jsonl")


def _added(fs: Any, name: str, start: int) -> tuple[int, list[Record], int]:
    """The end of the last complete line, the records from `start` to there, and the number of damaged lines; an
    incomplete last line is left for later."""
    data = fs.cat_file(name, start=start)
    whole = data[: data.rfind(b"\n") + 1]
    records, damaged = decode_lines(whole)
    return start + len(whole), records, len(damaged)


def _on_ray(fs: Any, starts: dict[str, int], workers: int) -> dict[str, tuple[int, list[Record], int]]:
    """Read every segment in a Ray Data task."""
    import ray

    def read(row: dict[str, Any]) -> dict[str, Any]:
        end, records, damaged = _added(fs, row["name"], int(row["start"]))
        return {"name": row["name"], "end": end, "records": records, "damaged": damaged}

    rows = [{"name": name, "start": start} for name, start in starts.items()]
    found = ray.data.from_items(rows).map(read, concurrency=workers).take_all()
    return {row["name"]: (int(row["end"]), list(row["records"]), int(row["damaged"])) for row in found}
