"""Profiles on disk: kept by build and machine, whole or not at all."""

import logging
from pathlib import Path
from threading import Thread

import pytest

from draftpick.engines.profile import cache as profile_cache
from draftpick.engines.profile.identity import EngineIdentity, described, digest, machine_name
from draftpick.engines.profile.profile import Profile

WHO = EngineIdentity("build", "machine", 16)
MINE = Profile("build", "machine", (1, 8), (64,), (((0.03,), (0.05,)), ((0.04,), (0.06,))), 0.01, 0.001, 16)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRAFTPICK_CACHE", str(tmp_path))
    return tmp_path / "profiles"


def test_what_was_written_is_read_by_the_same_engine_alone(cache: Path) -> None:
    assert profile_cache.read(WHO) is None
    path = profile_cache.write(MINE)
    assert path == cache / "build-machine.json"
    assert profile_cache.read(WHO) == MINE
    assert profile_cache.read(EngineIdentity("build", "other")) is None
    assert list(cache.iterdir()) == [path]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"schema": 1}', b"\xff\x00"])
def test_a_damaged_profile_is_left_out_with_a_warning(damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = profile_cache.write(MINE)
    path.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert profile_cache.read(WHO) is None
    assert "build-machine.json" in caplog.text
    profile_cache.write(MINE)
    assert profile_cache.read(WHO) == MINE


def test_a_file_that_was_renamed_is_not_believed() -> None:
    profile_cache.write(MINE).rename(profile_cache.folder() / "other-machine.json")
    assert profile_cache.read(EngineIdentity("other", "machine")) is None


def test_readers_never_see_half_a_profile() -> None:
    profile_cache.write(MINE)
    writers = [Thread(target=lambda: [profile_cache.write(MINE) for _ in range(50)]) for _ in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert profile_cache.read(WHO) == MINE
    for writer in writers:
        writer.join()


def test_an_identity_survives_its_page_and_nothing_else_passes_for_one() -> None:
    assert EngineIdentity.from_json(b'{"build": "build", "machine": "machine", "max_running": 16}') == WHO
    assert EngineIdentity.from_json(b'{"build": "b", "machine": "m"}') == EngineIdentity("b", "m", None)
    for other in (b"", b"[]", b"{}", b'{"build": "../b", "machine": "m"}', b'{"build": "b", "machine": "m/n"}'):
        assert EngineIdentity.from_json(other) is None
    assert EngineIdentity.from_json(b'{"build": "b", "machine": "m", "max_running": 0}') is None


def test_a_model_is_what_its_folder_holds_not_where_it_lies(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"hidden_size": 4}')
    assert described(str(tmp_path / "a")) == described(str(tmp_path / "b"))
    (tmp_path / "b" / "config.json").write_text('{"hidden_size": 8}')
    assert described(str(tmp_path / "a")) != described(str(tmp_path / "b"))
    assert described("some/model") == "some/model"


def test_digests_and_machines_are_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    name = machine_name(["2x", "NVIDIA H100 80GB"])
    assert name.startswith("2x-nvidia-h100-80gb-")
    assert "-3-of-" in name
    assert EngineIdentity.from_json(b'{"build": "b", "machine": "%b"}' % name.encode()) is not None
