"""vLLM's arguments."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.doctor.ward import GPU, PLAIN, SUFFIX, drafting, fleet, found, one, with_kwargs


def test_arguments_that_vllm_does_not_know(tmp_path: Path) -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    shared = one(found(fleet(tmp_path, engine_kwargs={"max_num_sqs": 4}), "unknown_arguments"))
    assert shared.where == "engine_kwargs.max_num_sqs"
    assert shared.cure.startswith("did you mean 'max_num_seqs'?")
    own = fleet(tmp_path, PLAIN, drafting("ngram", prompt_lookup_mx=3))
    assert one(found(own, "unknown_arguments")).where == "engines.1.drafter.prompt_lookup_mx"
    known = {"max_num_seqs": 4, "enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
    assert not found(fleet(tmp_path, engine_kwargs=known), "unknown_arguments")
    assert not found(fleet(tmp_path, PLAIN, drafting("trigram", iterations=9)), "unknown_arguments")
    assert not found(
        fleet(tmp_path, PLAIN, drafting("eagle3", model="embedded:math", draft_exit=True)), "unknown_arguments"
    )


def test_what_target_and_drafter_say_already(tmp_path: Path) -> None:
    config = fleet(tmp_path, with_kwargs(PLAIN, served_model_name="x"), SUFFIX)
    assert one(found(config, "said_twice")).where == "engines.0.engine_kwargs.served_model_name"
    assert not found(fleet(tmp_path), "said_twice")


@pytest.mark.parametrize(
    ("kwargs", "level", "where"),
    [
        ({"per_request_spec_decode_metrics": "summary"}, "problem", "engine_kwargs.per_request_spec_decode_metrics"),
        ({"per_request_spec_decode_metrics": "none"}, "warning", "engine_kwargs.per_request_spec_decode_metrics"),
        ({"enable_per_request_metrics": False}, "warning", "engine_kwargs.enable_per_request_metrics"),
        ({"disable_log_stats": True}, "warning", "engine_kwargs.disable_log_stats"),
    ],
)
def test_metrics_of_answers(tmp_path: Path, kwargs: dict[str, Any], level: str, where: str) -> None:
    findings = found(fleet(tmp_path, engine_kwargs=kwargs), "metrics")
    assert {(finding.level, finding.where) for finding in findings} == {(level, where)}


def test_metrics_on_the_engine_that_has_a_drafter(tmp_path: Path) -> None:
    config = fleet(tmp_path, PLAIN, with_kwargs(SUFFIX, per_request_spec_decode_metrics="detailed"))
    assert not found(config, "metrics")


def test_tokens_in_lumps(tmp_path: Path) -> None:
    assert len(found(fleet(tmp_path, engine_kwargs={"stream_interval": 4}), "stream_interval")) == 2
    assert not found(fleet(tmp_path, engine_kwargs={"stream_interval": 1}), "stream_interval")


@pytest.mark.parametrize(
    ("kwargs", "gpu", "level"),
    [
        ({"enable_chunked_prefill": True}, False, "problem"),
        ({"enable_chunked_prefill": False}, True, "warning"),
        ({"max_num_batched_tokens": 1024, "max_model_len": 2048}, False, "problem"),
        ({"max_num_batched_tokens": 8, "max_num_seqs": 16}, True, "problem"),
        ({"max_num_batched_tokens": 1024, "max_model_len": 2048}, True, None),
        ({"max_num_batched_tokens": 2048, "max_model_len": 2048, "max_num_seqs": 16}, False, None),
    ],
)
def test_prefills(tmp_path: Path, kwargs: dict[str, Any], gpu: bool, level: str | None) -> None:
    engine = {**PLAIN, **GPU} if gpu else PLAIN
    findings = found(fleet(tmp_path, engine, engine_kwargs=kwargs), "chunked_prefill")
    assert [finding.level for finding in findings] == ([level] if level else [])


def test_drafters_that_sleep(tmp_path: Path) -> None:
    assert one(found(fleet(tmp_path, engine_kwargs={"enable_sleep_mode": True}), "sleep_mode")).level == "warning"
    assert not found(fleet(tmp_path, with_kwargs(PLAIN, enable_sleep_mode=True)), "sleep_mode")


def test_seeds_of_engines(tmp_path: Path) -> None:
    assert one(found(fleet(tmp_path, with_kwargs(PLAIN, seed=3), SUFFIX), "seeds")).level == "note"
    assert not found(fleet(tmp_path, engine_kwargs={"seed": 3}), "seeds")


def test_a_value_of_another_type_is_a_finding_and_no_crash(tmp_path: Path) -> None:
    finding = one(found(fleet(tmp_path, engine_kwargs={"stream_interval": "often"}), "stream_interval"))
    assert finding.level == "problem"
    assert "wrong type" in finding.what
