"""Engines beside one another."""

from pathlib import Path
from typing import Any

import pytest

from tests.deploy.doctor.ward import PLAIN, SUFFIX, WELL, fleet, found, one, with_kwargs


def test_engines_that_would_answer_otherwise(tmp_path: Path) -> None:
    finding = one(found(fleet(tmp_path, with_kwargs(PLAIN, dtype="float32"), SUFFIX), "same_output"))
    assert (finding.level, finding.where) == ("problem", "engines.*.engine_kwargs.dtype")
    assert "float32: plain; nothing: suffix" in finding.what
    parser = fleet(tmp_path, with_kwargs(PLAIN, tool_call_parser="hermes"), SUFFIX)
    assert one(found(parser, "same_output")).level == "warning"
    assert not found(fleet(tmp_path, engine_kwargs={"dtype": "float32"}), "same_output")


@pytest.mark.parametrize(
    ("argument", "level"),
    [
        ({"max_model_len": 4096}, "warning"),
        ({"enable_prefix_caching": False}, "warning"),
        ({"max_num_seqs": 4}, "note"),
    ],
)
def test_engines_of_another_capacity(tmp_path: Path, argument: dict[str, Any], level: str) -> None:
    assert one(found(fleet(tmp_path, with_kwargs(PLAIN, **argument), SUFFIX), "same_capacity")).level == level
    assert not found(fleet(tmp_path, engine_kwargs=argument), "same_capacity")


def test_an_engine_without_a_drafter(tmp_path: Path) -> None:
    only = fleet(tmp_path, SUFFIX, router={"default_engine": "suffix"})
    assert one(found(only, "plain_engine")).level == "warning"
    remote = {"name": "remote", "url": "http://127.0.0.1:9"}
    unknown = fleet(tmp_path, SUFFIX, remote, router={"default_engine": "suffix"})
    assert one(found(unknown, "plain_engine")).level == "note"
    assert not found(unknown, "plain_engine", running={"remote": WELL})
    assert not found(fleet(tmp_path), "plain_engine")


def test_one_engine_is_nothing_to_choose_from(tmp_path: Path) -> None:
    assert one(found(fleet(tmp_path, PLAIN), "one_engine")).level == "warning"
    assert not found(fleet(tmp_path), "one_engine")


def test_the_default_engine(tmp_path: Path) -> None:
    finding = one(found(fleet(tmp_path, router={"default_engine": "suffix"}), "default_engine"))
    assert (finding.level, finding.cure) == ("note", "default_engine: plain")
    assert not found(fleet(tmp_path), "default_engine")


def test_mocks_among_real_engines(tmp_path: Path) -> None:
    fake = {"name": "fake", "kind": "mock"}
    assert one(found(fleet(tmp_path, PLAIN, fake), "mocks")).level == "problem"
    all_fake = fleet(tmp_path, fake, router={"default_engine": "fake"})
    assert one(found(all_fake, "mocks")).level == "note"
    assert not found(fleet(tmp_path), "mocks")


def test_a_pool_alone_is_a_fleet_to_choose_in(tmp_path: Path) -> None:
    pool = {"name": "pool", "drafters": [{"name": "suffix", "method": "suffix"}]}
    for default in ("pool", "pool/suffix"):
        alone = fleet(tmp_path, pool, router={"default_engine": default})
        assert not any(found(alone, check) for check in ("plain_engine", "one_engine", "default_engine"))
