"""`draftpick records repair`."""

import json
from pathlib import Path

from draftpick.router.records import encode
from tests.deploy.cli.test_main import invoke, words
from tests.router.test_records import record


def test_damaged_lines_are_counted_and_moved_aside(tmp_path: Path) -> None:
    segment = tmp_path / "records-1.jsonl"
    segment.write_bytes(b"damaged\n" + encode(record()))
    assert "0 damaged lines in 0 segments" in words(invoke("records", "repair", str(tmp_path)).stdout)
    told = json.loads(invoke("records", "repair", str(tmp_path), "--min-age", "0", "--json").stdout)
    assert told == [{"segment": str(segment), "records": 1, "damaged": 1}]
    assert segment.read_bytes() == encode(record())


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    assert invoke("records", "repair", str(tmp_path)).exit_code == 2
