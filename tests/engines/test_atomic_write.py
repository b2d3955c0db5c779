"""Files and folders that are there whole or not at all, whatever happens while they are written."""

import multiprocessing
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from draftpick.engines.atomic_write import atomic_folder, atomic_path, atomic_write


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- files ---


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_made_and_replaced(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "one.json"
    atomic_write(path, "früher", durable=durable)
    assert path.read_bytes() == "früher".encode()
    atomic_write(path, b"later", durable=durable)
    assert path.read_bytes() == b"later"
    assert names(tmp_path) == ["one.json"]


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text("old")

    def half() -> None:
        with atomic_path(path) as scratch:
            scratch.write_text("half")
            assert path.read_text() == "old"
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["one.json"]


@pytest.mark.parametrize(("name", "durable"), [("replace", False), ("fsync", True)])
def test_a_disk_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, durable: bool
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "one.json"
    path.write_text("old")
    monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, "new", durable=durable)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["one.json"]


def is_sampled(path: Path) -> None:
    with atomic_path(path) as scratch:
        scratch.write_text("half")
        os.kill(os.getpid(), 9)


def test_a_process_that_is_killed_midway_leaves_the_old_file_to_readers(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text("old")
    process = multiprocessing.get_context("spawn").Process(target=is_sampled, args=(path,))
    process.start()
    process.join(60)
    assert process.exitcode == -9
    assert path.read_text() == "old"
    assert [name for name in names(tmp_path) if not name.startswith(".")] == ["one.json"]
    atomic_write(path, "new")
    assert path.read_text() == "new"


def test_two_writers_do_not_write_into_each_other(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    with atomic_path(path) as one, atomic_path(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"


def test_permissions_are_those_asked_for_from_the_first_byte(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    with atomic_path(path, mode=0o600) as scratch:
        assert mode_of(scratch) == 0o600
    assert mode_of(path) == 0o600
    with atomic_path(path, mode=0o644) as scratch:
        assert mode_of(scratch) == 0o600
    assert mode_of(path) == 0o644


def test_permissions_are_otherwise_those_that_were_there(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch()
    old.chmod(0o640)
    before = os.umask(0o027)
    try:
        atomic_write(old, "x")
        atomic_write(new, "x")
    finally:
        os.umask(before)
    assert (mode_of(old), mode_of(new)) == (0o640, 0o640)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder") as error:
        atomic_write(tmp_path / "nowhere" / "one.json", "x")
    assert error.value.filename == str(tmp_path / "nowhere")


# --- folders ---


def fill(folder: Path, text: str, *, replace: bool = True) -> None:
    with atomic_folder(folder, replace=replace) as scratch:
        (scratch / "manifest").write_text(text)


def test_a_folder_is_made_and_replaced_with_what_it_holds(tmp_path: Path) -> None:
    folder = tmp_path / "above" / "policy"
    fill(folder, "old")
    (folder / "further").touch()
    fill(folder, "new")
    assert names(folder) == ["manifest"]
    assert (folder / "manifest").read_text() == "new"
    assert names(folder.parent) == ["policy"]


def test_an_error_leaves_the_old_folder(tmp_path: Path) -> None:
    fill(tmp_path / "policy", "old")

    def half() -> None:
        with atomic_folder(tmp_path / "policy") as scratch:
            (scratch / "manifest").touch()
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        half()
    assert (tmp_path / "policy" / "manifest").read_text() == "old"
    assert names(tmp_path) == ["policy"]


def test_a_folder_that_cannot_take_its_place_gives_it_back_to_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "policy", "old")
    really = os.replace

    def replace(source: Path, target: Path) -> None:
        if source.name == "new":
            raise OSError(28, "No space left on device")
        really(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="No space left"):
        fill(tmp_path / "policy", "new")
    assert (tmp_path / "policy" / "manifest").read_text() == "old"
    assert names(tmp_path) == ["policy"]


def test_the_first_of_two_that_make_a_folder_keeps_it(tmp_path: Path) -> None:
    fill(tmp_path / "target", "first", replace=False)
    with pytest.raises(OSError, match="not empty"):
        fill(tmp_path / "target", "second", replace=False)
    assert (tmp_path / "target" / "manifest").read_text() == "first"
    assert names(tmp_path) == ["target"]
