"""Records on disk: what goes in comes out, segments turn over, and what cannot be kept is counted."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.router.config.router_config import RecordsConfig
from draftpick.router.records import (
    SCHEMA,
    SCHEMA_1_DECISION,
    SCHEMA_1_FIELDS,
    SCHEMA_1_LOAD,
    RecordWriter,
    decode,
    decode_lines,
    encode,
    read,
    repair,
)
from draftpick.router.types import Attempt, Context, Decision, LoadTerms, Outcome, Record, Turn
from tests.fleet import until
from tests.router.config.test_former_fields import upgrading

words = st.text(st.characters(codec="utf-8"), max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False)
shares = st.dictionaries(words, finite, max_size=3)
counts = st.integers(0, 2**53)
contexts = st.builds(
    Context,
    st.lists(st.floats(width=32, allow_nan=False), max_size=8).map(lambda values: np.array(values, np.float32)),
    words,
)
decisions = st.builds(Decision, words, finite, shares, words, st.sampled_from(["policy", "pinned", "fallback"]))
outcomes = st.builds(
    Outcome,
    st.sampled_from(["ok", "client_error", "engine_error", "timeout", "broken", "cancelled"]),
    *[st.none() | counts, *[st.none() | finite] * 3, *[st.none() | counts] * 2, *[st.none() | finite] * 3],
)
records = st.builds(
    Record,
    words,
    st.integers(1, 10),
    finite,
    words,
    st.booleans(),
    shares,
    st.dictionaries(words, counts, max_size=3),
    st.none() | contexts,
    decisions,
    outcomes,
)


def record(request_id: str = "r") -> Record:
    decision = Decision("a", 1.0, {"a": 1.0}, "fixed:a")
    context = Context(np.array([0.5, -1.0], np.float32), "lexical")
    return Record(request_id, 1, 0.0, "/v1/completions", False, {}, {"a": 0}, context, decision, Outcome("ok"))


def wait(condition: Callable[[], bool]) -> None:
    """Until `condition` holds, for 5 s at most."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def plain(value: Record) -> tuple[Any, ...]:
    """A record in a form that `==` compares."""
    fields = {name: getattr(value, name) for name in Record.__slots__ if name != "context"}
    context = value.context
    return (fields, context and (context.vector.tobytes(), context.vector.dtype, context.featurizer))


def writer(folder: Path, **config: Any) -> RecordWriter:
    return RecordWriter(RecordsConfig(dir=folder, **config))


async def written(opened: RecordWriter, count: int) -> None:
    await until(lambda: opened.written == count)


def ids(folder: Path) -> list[str]:
    return [found.request_id for found in read(folder)]


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("records-*.jsonl"))


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers write a hundred times a second."""
    monkeypatch.setattr("draftpick.router.records._FLUSH_S", 0.01)


# --- one line ---


@given(records)
def test_a_record_survives_a_round_trip(value: Record) -> None:
    line = encode(value)
    assert line.endswith(b"\n")
    assert b"\n" not in line[:-1]
    assert plain(decode(line)) == plain(value)


def test_a_line_is_one_json_object_of_schema_2_without_any_prompt() -> None:
    fields = json.loads(encode(record()))
    assert fields["schema"] == 2
    assert fields["decision"]["probabilities"] == {"a": 1.0}
    assert fields["context"] == {"vector": "AAAAPwAAgL8=", "featurizer": "lexical"}
    optional = {"turn": Turn("0a1b", 2, "kept", 1, after_tool=True), "adapter": "sql"}  # short lines without them
    assert set(fields) == set(Record.__slots__) - set(optional)
    line = encode(replace(record(), **optional))  # type: ignore[arg-type]
    assert set(json.loads(line)) == set(Record.__slots__)
    assert {name: getattr(decode(line), name) for name in optional} == optional
    assert not {"text", "body", "prompt", "messages"} & set(fields)


@pytest.fixture
def schema_1() -> list[bytes]:
    """Lines as the router wrote them under schema 1; the last is one of its oldest."""
    return (Path(__file__).parent / "records_schema1.jsonl").read_bytes().splitlines(keepends=True)


def test_records_of_schema_1_are_read_in_the_names_of_today(schema_1: list[bytes]) -> None:
    full, broken, resumed, shadow, fallback, old = map(decode, schema_1)
    load = LoadTerms([1.5, 1.0], [2.0, 1.0], [0.25, 0.0], [1024, 0], [3.0, 1.0])
    assert full.decision == Decision(
        "suffix", 0.97, {"plain": 0.03, "suffix": 0.97}, "tau_cost:0a1b2c3d", "policy", 0.03,
        predicted_tpot_s=[0.03125, 0.015625], residual=[0.125, -0.0625], load=load, unloaded_arm="suffix",
        policy_share=0.75, other_policy_probabilities={"tau_cost:new": {"plain": 1.0, "suffix": 0.0}},
    )  # fmt: skip
    assert (full.in_flight, full.schema) == ({"plain": 2, "suffix": 1}, SCHEMA)
    assert full.outcome == Outcome("ok", 200, 0.125, 0.015625, 1.0, 40, 57, 2.5, 0.5, 0.0009765625, 0.0625)
    assert full.context is not None
    assert full.context.vector.tolist() == [0.0, 0.5, 1.0, 0.25]
    reasons = [one.decision.reason for one in (full, broken, resumed, shadow, fallback)]
    assert reasons == ["policy", "policy", "resumed", "shadow", "fallback"]
    assert (broken.outcome.status, fallback.outcome.status, fallback.context) == ("broken", "timeout", None)
    assert old.decision.load == replace(load, prefill_weight=[1.0, 1.0])
    assert old.decision.other_policy_probabilities is None


def test_records_of_schema_1_are_written_again_as_schema_2(schema_1: list[bytes]) -> None:
    for line in schema_1:
        again = json.loads(encode(decode(line)))
        assert again["schema"] == 2
        assert not {*SCHEMA_1_FIELDS} & set(again)
        assert not {*SCHEMA_1_DECISION} & set(again["decision"])
        assert not {*SCHEMA_1_LOAD} & set(again["decision"]["load"] or ())
        assert plain(decode(json.dumps(again).encode())) == plain(decode(line))


def test_segments_of_both_schemas_are_read_together(tmp_path: Path, schema_1: list[bytes]) -> None:
    (tmp_path / "records-1.jsonl").write_bytes(b"".join(schema_1))
    (tmp_path / "records-2.jsonl").write_bytes(encode(record("new")))
    assert ids(tmp_path) == ["r1", "r2", "r2", "r3", "r4", "r5", "new"]


def test_the_changelog_lists_every_name_that_changed() -> None:
    lines = set(upgrading())
    for prefix, names in (("", SCHEMA_1_FIELDS), ("decision.", SCHEMA_1_DECISION), ("decision.load.", SCHEMA_1_LOAD)):
        assert {f"  - `{prefix}{old}` -> `{prefix}{new}`" for old, new in names.items()} <= lines


@pytest.mark.parametrize("field", [*SCHEMA_1_DECISION])
def test_a_name_of_schema_1_is_wrong_in_schema_2(field: str) -> None:
    line = json.loads(encode(record()))
    line["decision"][field] = None
    with pytest.raises(ValueError, match="damaged record"):
        decode(json.dumps(line).encode())


@pytest.mark.parametrize("change", [{"decision": None}, {"decision": {"arm": "a"}}, {"unknown": 1}, {"load": 3}])
def test_a_damaged_record_of_schema_1_is_refused(schema_1: list[bytes], change: dict[str, Any]) -> None:
    fields = {**json.loads(schema_1[0]), **change}
    if "load" in change:
        fields["decision"]["load"] = change["load"]
    with pytest.raises(ValueError, match="damaged record"):
        decode(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 3},
        {"schema": None},
        {"decision": {"arm": "a"}},
        {"outcome": {"status": "ok", "unknown": 1}},
        {"context": {"vector": "not base64!", "featurizer": "x"}},
        {"context": {"vector": "AAAA", "featurizer": "x"}},
        {"context": {"featurizer": "x"}},
        {"request_id": None},
        {"attempt": "first"},
        {"key": [1]},
        {"sampling": "x"},
        {"sampling": {"max_tokens": None}},
        {"in_flight": {"a": "many"}},
        {"outcome": {"status": "ok", "tpot_s": "fast"}},
        {"outcome": {"status": "ok", "drafters": {"a": {"tau": "long"}}}},
        {"unknown": 1},
    ],
)
def test_a_damaged_record_is_refused(change: dict[str, Any]) -> None:
    fields = json.loads(encode(record()))
    with pytest.raises(ValueError):  # noqa: PT011  # what it says depends on the damage
        decode(json.dumps({**fields, **change}).encode())


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"3", b"{}"])
def test_a_line_that_is_no_record_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        decode(line)


# --- a folder ---


def test_records_are_on_disk_when_the_writer_is_closed(tmp_path: Path) -> None:
    opened = writer(tmp_path / "deep" / "folder")
    for i in range(100):
        opened.write(record(f"r{i}"))
    opened.close()
    assert ids(tmp_path / "deep" / "folder") == [f"r{i}" for i in range(100)]
    assert (opened.written, opened.dropped) == (100, 0)


@pytest.mark.usefixtures("often")
async def test_records_are_on_disk_while_the_writer_is_open(tmp_path: Path) -> None:
    opened = writer(tmp_path)
    opened.write(record())
    await until(lambda: ids(tmp_path) == ["r"])
    opened.close()


def test_no_records_no_segment(tmp_path: Path) -> None:
    writer(tmp_path).close()
    assert segments(tmp_path) == []


@pytest.mark.usefixtures("often")
async def test_a_full_segment_is_followed_by_another(tmp_path: Path) -> None:
    opened = writer(tmp_path, segment_bytes=1024)
    for i in range(12):
        opened.write(record(f"r{i:02}"))
        await written(opened, i + 1)
    opened.close()
    sizes = [path.stat().st_size for path in segments(tmp_path)]
    assert len(sizes) > 1
    one = len(encode(record("r00")))
    assert all(1024 <= size < 1024 + one for size in sizes[:-1])
    assert ids(tmp_path) == [f"r{i:02}" for i in range(12)]


@pytest.mark.usefixtures("often")
async def test_an_old_segment_is_followed_by_another(tmp_path: Path) -> None:
    opened = writer(tmp_path, segment_age_s=1e-6)
    for i in range(3):
        opened.write(record(f"r{i}"))
        await written(opened, i + 1)
    opened.close()
    assert len(segments(tmp_path)) == 3


@pytest.mark.usefixtures("often")
async def test_the_oldest_segments_of_a_writer_are_removed(tmp_path: Path) -> None:
    other = tmp_path / "records-00000000T000000Z-1-000000.jsonl"
    other.write_bytes(encode(record("other")))
    opened = writer(tmp_path, segment_age_s=1e-6, keep_segments=2)
    for i in range(4):
        opened.write(record(f"r{i}"))
        await written(opened, i + 1)
    opened.close()
    assert ids(tmp_path) == ["other", "r2", "r3"]


def test_a_record_names_its_request_anew_and_its_key_by_a_digest(tmp_path: Path) -> None:
    opened, made = writer(tmp_path), Attempt(
        "theirs", 2, "/v1/completions", True, {"n": 2.0}, None, Decision("a", 1.0, {"a": 1.0}, "p"), Outcome("ok"),
        {"a": 3}, id="ours", key="team",
    )  # fmt: skip
    for attempt in (made, replace(made, request_id="ours", key="")):
        opened.on_attempt_end(attempt)
    opened.close()
    first, second = read(tmp_path)
    assert (first.request_id, first.client_request_id, first.attempt, first.stream) == ("ours", "theirs", 2, True)
    assert (first.sampling, first.in_flight, first.path) == ({"n": 2.0}, {"a": 3}, "/v1/completions")
    assert first.key == hashlib.sha256(b"team").hexdigest()[:12]
    assert (second.client_request_id, second.key) == (None, "")
    assert first.time == made.time


def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    opened = writer(tmp_path, queue_size=5)
    for i in range(8):
        opened.write(record(f"r{i}"))
    opened.close()
    assert ids(tmp_path) == [f"r{i}" for i in range(5)]
    assert (opened.written, opened.dropped) == (5, 3)


@pytest.mark.usefixtures("often")
async def test_a_folder_that_cannot_be_written_drops_and_counts_until_it_can(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    opened = writer(folder)
    folder.rmdir()
    folder.touch()
    opened.write(record("lost"))
    await until(lambda: opened.dropped == 1)
    folder.unlink()
    opened.write(record("kept"))
    opened.close()
    assert ids(folder) == ["kept"]
    assert (opened.written, opened.dropped) == (1, 1)


def test_a_disk_that_fills_up_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes half of what is written and then no more, as a full one does."""
    full = threading.Event()
    really = os.write

    def write(file: int, data: memoryview) -> int:
        if not full.is_set():
            return really(file, data)
        if len(data) < 200:
            raise OSError(errno.ENOSPC, "no space left")
        return really(file, data[: len(data) // 2])

    monkeypatch.setattr("draftpick.router.records._FLUSH_S", 0.01)
    monkeypatch.setattr("draftpick.router.records.os.write", write)
    opened = writer(tmp_path)
    opened.write(record("before"))
    wait(lambda: opened.written == 1)
    full.set()
    for i in range(3):
        opened.write(record(f"lost-{i}"))
    wait(lambda: opened.dropped == 3)
    full.clear()
    opened.write(record("after"))
    opened.close()
    assert ids(tmp_path) == ["before", "after"]
    assert (opened.written, opened.dropped) == (2, 3)


def test_a_full_disk_costs_no_older_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, really = threading.Event(), os.write

    def write(file: int, data: memoryview) -> int:
        if full.is_set():
            raise OSError(errno.ENOSPC, "no space left")
        return really(file, data)

    monkeypatch.setattr("draftpick.router.records._FLUSH_S", 0.01)
    monkeypatch.setattr("draftpick.router.records.os.write", write)
    opened = writer(tmp_path, segment_age_s=1e-6, keep_segments=2)
    for i in range(2):
        opened.write(record(f"r{i}"))
        wait(lambda: opened.written == i + 1)  # noqa: B023
    full.set()
    for i in range(5):
        opened.write(record(f"lost-{i}"))
        wait(lambda: opened.dropped == i + 1)  # noqa: B023
    opened.close()
    assert ids(tmp_path) == ["r0", "r1"]
    assert len(segments(tmp_path)) == 2


def test_writers_of_one_name_keep_each_other_s_segments(tmp_path: Path) -> None:
    both = [writer(tmp_path, segment_age_s=1e-6, keep_segments=2) for _ in range(2)]
    for opened in both:
        opened._prefix = "records-20260101T000000Z-node-1"
    for i, opened in enumerate(both):
        opened.write(record(f"r{i}"))
        opened.close()
    assert ids(tmp_path) == ["r0", "r1"]


def test_a_record_that_has_no_line_costs_itself_alone(tmp_path: Path) -> None:
    opened = writer(tmp_path)
    for name in ("first", "\ud800", "last"):
        opened.write(record(name))
    opened.close()
    assert ids(tmp_path) == ["first", "last"]
    assert (opened.written, opened.dropped) == (2, 1)


def test_damaged_lines_are_skipped_and_moved_aside_by_a_repair(tmp_path: Path) -> None:
    segment = tmp_path / "records-1.jsonl"
    segment.write_bytes(
        encode(record("a")) + b"\0\0\n" + encode(record("b")) + b'{"schema": 9}\n' + encode(record("c"))[:50]
    )
    whole = segment.read_bytes()
    assert ids(tmp_path) == ["a", "b"]
    assert repair(tmp_path, 3600) == []
    assert repair(tmp_path, 0, dry_run=True) == [(segment, 2, 3)]
    assert segment.read_bytes() == whole
    assert repair(tmp_path, 0) == [(segment, 2, 3)]
    assert ids(tmp_path) == ["a", "b"]
    aside = tmp_path / "records-1.jsonl.damaged"
    assert aside.read_bytes().split(b"\n")[:2] == [b"\0\0", b'{"schema": 9}']
    assert repair(tmp_path, 0) == []


def test_a_time_in_the_future_is_read_as_now() -> None:
    ahead, before = replace(record("ahead"), time=time.time() + 86_400), time.time()
    records, damaged = decode_lines(encode(ahead) + b"{\n")
    assert before <= records[0].time <= time.time()
    assert damaged == [b"{"]


def test_a_writer_that_is_killed_loses_its_last_moment_alone(tmp_path: Path) -> None:
    code = """if True:
        import sys, time
        from pathlib import Path
        from tests.router.test_records import record, writer
        opened = writer(Path(sys.argv[1]), segment_bytes=4096)
        for i in range(100_000):
            opened.write(record(f"r{i}"))
            print(i, flush=True)
            time.sleep(0.002)
    """
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 400:
            pass
        process.kill()
        written = 400 + len(process.stdout.readlines())
    found = ids(tmp_path)
    assert found == [f"r{i}" for i in range(len(found))]
    assert 0 < len(found) <= written + 2
    assert written - len(found) < 400


def test_a_clock_that_steps_back_neither_hides_nor_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments, really = iter([2_000_000_000, 2_000_000_000, 1_000_000_000]), time.gmtime
    monkeypatch.setattr("draftpick.router.records.time.gmtime", lambda: really(next(moments)))
    for name in ("first", "second", "third"):
        opened = writer(tmp_path)
        opened.write(record(name))
        opened.close()
    assert sorted(ids(tmp_path)) == ["first", "second", "third"]


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    whole = encode(record("whole"))
    (tmp_path / "records-1.jsonl").write_bytes(whole + encode(record("torn"))[:-20])
    (tmp_path / "records-2.jsonl").write_bytes(encode(record("next")))
    assert ids(tmp_path) == ["whole", "next"]


def test_other_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text("no record\n")
    assert ids(tmp_path) == []


def test_records_need_a_folder() -> None:
    with pytest.raises(ValueError, match="dir is needed"):
        RecordWriter(RecordsConfig())


def test_a_closed_writer_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    opened = writer(tmp_path)
    assert threading.active_count() == before + 1
    opened.close()
    assert threading.active_count() == before


def test_segments_are_numbered_from_0(tmp_path: Path) -> None:
    opened = writer(tmp_path)
    opened.write(record())
    opened.close()
    (segment,) = segments(tmp_path)
    assert segment.name.endswith(f"-{os.getpid()}-000000.jsonl")
    assert segment.stat().st_mode & 0o777 == 0o640 & ~umask()


def umask() -> int:
    now = os.umask(0o022)
    os.umask(now)
    return now


@pytest.mark.parametrize(("age_s", "repaired"), [(59.0, 0), (61.0, 1)])
def test_a_segment_that_may_still_grow_is_not_repaired(tmp_path: Path, age_s: float, repaired: int) -> None:
    segment = tmp_path / "records-1.jsonl"
    segment.write_bytes(encode(record("a")) + b"{\n")
    then = time.time() - age_s
    os.utime(segment, (then, then))
    good = tmp_path / "records-2.jsonl"
    good.write_bytes(encode(record("b")))
    os.utime(good, (then, then))
    assert len(repair(tmp_path, 60.0)) == repaired
    assert (tmp_path / "records-1.jsonl.damaged").exists() is bool(repaired)
    assert good.read_bytes() == encode(record("b"))


def test_a_line_that_is_damaged_twice_is_moved_twice(tmp_path: Path) -> None:
    segment = tmp_path / "records-1.jsonl"
    segment.write_bytes(b"{\n" + encode(record("a")) + b"{\n")
    assert repair(tmp_path, 0) == [(segment, 1, 2)]
    assert (tmp_path / "records-1.jsonl.damaged").read_bytes() == b"{\n{\n"


@pytest.mark.parametrize("moment", [None, "now", [1.0]])
def test_a_record_whose_time_is_no_number_is_damaged(moment: Any) -> None:
    fields = {**json.loads(encode(record())), "time": moment}
    with pytest.raises(ValueError, match="damaged record: time"):
        decode(json.dumps(fields).encode())


def test_times_of_the_past_are_read_as_they_are() -> None:
    before = replace(record(), time=1234.5)
    (found,), damaged = decode_lines(encode(before) + b"\n")
    assert (found.time, damaged) == (1234.5, [])


@pytest.mark.parametrize(("size", "kept"), [(0, 0), (1, 1), (3, 3)])
def test_a_queue_takes_as_many_as_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, kept: int
) -> None:
    monkeypatch.setattr("draftpick.router.records._FLUSH_S", 60.0)
    opened = writer(tmp_path, queue_size=max(size, 1))
    for i in range(kept):
        opened.write(record(f"r{i}"))
    assert opened.dropped == 0
    opened.write(record("last"))
    assert opened.dropped == (1 if size else 0)
    opened.close()
    assert len(ids(tmp_path)) == max(size, 1)
