"""The rows of a file of prompts: JSON lines, one JSON list, Parquet, or plain text; all but Parquet may be gzipped."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import IO, Any

_TEXT_SUFFIXES = frozenset({".txt", ".md"})
_JSON_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})

Rows = Iterable[tuple[str, Any]]
"""Each row with its place in the file: "3" is line 3, "row 3" the third row of a Parquet file."""


def read_rows(path: Path) -> tuple[bool, Rows]:
    """Return (whether it is plain text, the rows of the file): values of JSON or Parquet, or the prompts of plain text.

    Raises ValueError with file, line and problem; OSError if the file is not readable.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix == ".parquet":
        return False, _parquet(path)
    first = b"" if suffix in _TEXT_SUFFIXES else _first_character(path)
    if first == b"[":
        return False, _json_list(path)
    if first == b"{" or suffix in _JSON_SUFFIXES:
        return False, _json_lines(path)
    return True, _texts(path)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield numbered lines, from 1."""
    number = 0
    with _open(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}:{number + 1}: damaged gzip file: {error}") from error


def _decode(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number}: {error}; save the file as UTF-8") from error


def _first_character(path: Path) -> bytes:
    """The first byte that is not white space; empty if there is none."""
    return next((text[:1] for _, line in _lines(path) if (text := line.removeprefix(b"\xef\xbb\xbf").strip())), b"")


def _json_lines(path: Path) -> Rows:
    for number, line in _lines(path):
        if line.strip():
            try:
                yield str(number), json.loads(_decode(path, number, line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: {error}; write one JSON object a line") from error


def _json_list(path: Path) -> Rows:
    """The elements of a JSON list, decoded one by one so that each has its line."""
    text = "".join(_decode(path, number, line) for number, line in _lines(path))
    decoder, at, line = json.JSONDecoder(), text.index("[") + 1, 1
    line += text.count("\n", 0, at)
    while True:
        start = at + next((i for i, c in enumerate(text[at : at + 10_000]) if c not in " \t\r\n,"), 0)
        line += text.count("\n", at, start)
        if text[start : start + 1] == "]":
            return
        try:
            value, at = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: {error.msg}") from error
        yield str(line), value
        line += text.count("\n", start, at)


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"row {number}", row


def _texts(path: Path) -> Rows:
    """Paragraphs, where blank lines lie between texts; otherwise each line."""
    lines = [(number, _decode(path, number, line).strip("\r\n")) for number, line in _lines(path)]
    groups = [list(group) for blank, group in groupby(lines, lambda line: not line[1].strip()) if not blank]
    if len(groups) == 1:
        return [(str(number), text) for number, text in groups[0]]
    return [(str(group[0][0]), "\n".join(text for _, text in group)) for group in groups]
