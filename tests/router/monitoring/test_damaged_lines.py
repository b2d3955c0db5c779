"""Damaged lines of records are counted a part at a time."""

from pathlib import Path

from draftpick.router.monitoring.damaged_lines import DamagedLines
from draftpick.router.records import encode
from tests.router.test_records import record

GOOD, BAD = encode(record()), b"\0" * 40 + b"\n"


def test_each_damaged_line_is_counted_once(tmp_path: Path) -> None:
    older, newer = tmp_path / "records-1.jsonl", tmp_path / "records-2.jsonl"
    older.write_bytes(GOOD + BAD + GOOD)
    newer.write_bytes(BAD + GOOD + GOOD[:50])
    lines = DamagedLines(tmp_path)
    assert [lines.count(), lines.count()] == [2, 2]
    with newer.open("ab") as file:
        file.write(GOOD[50:] + BAD)
    assert lines.count() == 3
    older.unlink()
    assert lines.count() == 2


def test_a_large_folder_is_looked_at_over_time_the_newest_first(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"records-{number}.jsonl").write_bytes(GOOD + BAD)
    lines = DamagedLines(tmp_path)
    assert [lines.count(len(GOOD + BAD)) for _ in range(5)] == [1, 2, 3, 4, 4]


def test_an_endless_line_is_passed(tmp_path: Path) -> None:
    (tmp_path / "records-1.jsonl").write_bytes(b"x" * 10_000 + b"\n" + GOOD + BAD)
    lines = DamagedLines(tmp_path)
    assert [lines.count(3000) for _ in range(8)][-1] >= 2
