"""Where records lie: a folder, or any store that fsspec knows (`s3://bucket/records`, `gs://`, `memory://`, ...)."""

import json
from collections.abc import Iterator
from typing import Any

import fsspec

from policy_training.dataset import DatasetError
from router.exchange import EVENTS
from router.online import Event
from router.records import decode
from router.types import Record


class RecordStore:
    """Segments below `url`, and the events beside them. Raises `DatasetError` where they cannot be read."""

    def __init__(self, url: str, workers: int = 0) -> None:
        """`workers`: processes of Ray Data that parse segments, on the cluster that Ray is connected to; 0: none."""
        try:
            self._fs, self._root = fsspec.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise DatasetError(f"{url} cannot be opened: {error}") from error
        self.url, self._workers = url, workers
        self._done: dict[str, tuple[int, list[Record]]] = {}

    def records(self, since: float = 0.0) -> list[Record]:
        """All records later than `since` (seconds since the epoch), in order of time.

        Segments that did not grow are not read again.
        """
        sizes = self._sizes()
        new = [name for name, size in sizes.items() if self._done.get(name, (-1, []))[0] != size]
        for name, found in zip(new, self._parse(new), strict=True):
            self._done[name] = (sizes[name], found)
        kept = [r for name in sizes for r in self._done[name][1] if r.time > since]
        return sorted(kept, key=lambda record: record.time)

    def events(self, since: float = 0.0) -> list[Event]:
        """What routers told of, later than `since`."""
        path = f"{self._root}/online/{EVENTS}"
        if not self._fs.exists(path):
            return []
        lines = self._fs.cat_file(path).splitlines(keepends=True)
        return [e for e in (Event(**json.loads(line)) for line in lines if line.endswith(b"\n")) if e.time > since]

    def _sizes(self) -> dict[str, int]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._root, detail=True)
        except OSError as error:
            raise DatasetError(f"{self.url} cannot be read: {error}") from error
        names = {str(one["name"]): int(one["size"]) for one in found}
        segments = {k: v for k, v in sorted(names.items()) if _is_segment(k.rsplit("/", 1)[-1])}
        if not segments:
            raise DatasetError(f"{self.url} holds no records-*.jsonl (is `router.records.dir` set?)")
        return segments

    def _parse(self, names: list[str]) -> list[list[Record]]:
        if self._workers and len(names) > 1:
            return _on_ray(self._fs, names, self._workers)
        return [_parsed(self._fs, name) for name in names]


def _is_segment(name: str) -> bool:
    return name.startswith("records-") and name.endswith(".jsonl")


def _parsed(fs: Any, name: str) -> list[Record]:
    return list(_decoded(fs.cat_file(name), name))


def _decoded(data: bytes, name: str) -> Iterator[Record]:
    """Records of a segment; a torn last line is passed over."""
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        if line.endswith(b"\n"):
            try:
                yield decode(line)
            except ValueError as error:
                raise DatasetError(f"{name}, line {number}: {error}") from error


def _on_ray(fs: Any, names: list[str], workers: int) -> list[list[Record]]:
    """Every segment in a task of Ray Data, wherever in the cluster there is room."""
    import ray

    def parse(row: dict[str, Any]) -> dict[str, Any]:
        return {"name": row["name"], "records": _parsed(fs, row["name"])}

    rows = ray.data.from_items([{"name": name} for name in names]).map(parse, concurrency=workers).take_all()
    by_name = {row["name"]: row["records"] for row in rows}
    return [by_name[name] for name in names]
