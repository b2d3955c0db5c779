"""Drafters as configured."""

from pathlib import Path
from typing import Any

import pytest

from tests.deploy.doctor.ward import GPU, PLAIN, SUFFIX, drafting, fleet, found, model, one


def test_models_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    engines = [PLAIN, drafting("draft_model", "a", model="/none"), drafting("eagle3", "b", model="embedded:none")]
    findings = found(fleet(tmp_path, *engines), "models")
    assert [finding.where for finding in findings] == ["engines.1.drafter.model", "engines.2.drafter.model"]
    assert not found(fleet(tmp_path, PLAIN, drafting("eagle3", model="embedded:math")), "models")


@pytest.mark.vllm
def test_methods_that_vllm_does_not_have(tmp_path: Path) -> None:
    elsewhere = {"name": "elsewhere", "url": "http://10.0.0.7:8000", "drafter": {"method": "ngrm"}}
    findings = found(fleet(tmp_path, PLAIN, drafting("ngrm"), elsewhere, drafting("mtp", "m")), "methods")
    assert {finding.where: finding.level for finding in findings} == {
        "engines.1.drafter.method": "problem",
        "engines.2.drafter.method": "warning",
    }


def test_a_draft_model_of_another_vocabulary(tmp_path: Path) -> None:
    target = model(tmp_path / "target", {"a": 0, "b": 1})
    other, same = model(tmp_path / "other", {"b": 0, "a": 1}), model(tmp_path / "same", {"a": 0, "b": 1})
    named = {"target": {"name": "m", "source": target}}
    config = fleet(tmp_path, PLAIN, drafting("draft_model", model=other), **named)
    assert one(found(config, "tokenizers")).level == "problem"
    assert not found(fleet(tmp_path, PLAIN, drafting("draft_model", model=same), **named), "tokenizers")
    mixed = drafting("draft_model", model=other, use_heterogeneous_vocab=True)
    assert not found(fleet(tmp_path, PLAIN, mixed, **named), "tokenizers")


@pytest.mark.parametrize(
    ("engine", "shares"),
    [
        (drafting("suffix"), True),
        (drafting("suffix", suffix_decoding_max_cached_requests=5), True),
        (SUFFIX, False),
        (drafting("trigram", shared=True), True),
        (drafting("hybrid", trigram={"shared": True}), True),
        (drafting("hybrid"), False),
        (drafting("ngram", prompt_lookup_max=4), False),
    ],
)
def test_text_that_is_kept_for_other_requests(tmp_path: Path, engine: dict[str, Any], shares: bool) -> None:
    findings = found(fleet(tmp_path, PLAIN, engine), "shared_text")
    assert [finding.level for finding in findings] == ["warning"] * shares


@pytest.mark.parametrize(
    ("option", "level"),
    [
        ({"suffix_decoding_max_tree_depth": 6}, "note"),
        ({"suffix_decoding_max_tree_depth": 24, "suffix_decoding_max_spec_factor": 2.0}, None),
    ],
)
def test_depth_of_suffix_trees(tmp_path: Path, option: dict[str, Any], level: str | None) -> None:
    engine = drafting("suffix", num_speculative_tokens=8, **option)
    findings = found(fleet(tmp_path, PLAIN, engine), "suffix_depth")
    assert [finding.level for finding in findings] == ([level] if level else [])


@pytest.mark.parametrize(
    ("option", "level"),
    [
        ({}, "note"),
        ({"prompt_lookup_min": 1, "prompt_lookup_max": 4}, "note"),
        ({"prompt_lookup_min": 5, "prompt_lookup_max": 4}, "problem"),
        ({"prompt_lookup_max": 0}, "problem"),
        ({"prompt_lookup_max": 4}, None),
        ({"prompt_lookup_min": 2, "prompt_lookup_max": 4}, None),
    ],
)
def test_bounds_of_lookups(tmp_path: Path, option: dict[str, Any], level: str | None) -> None:
    findings = found(fleet(tmp_path, PLAIN, drafting("ngram", **option)), "ngram_bounds")
    assert [finding.level for finding in findings] == ([level] if level else [])


@pytest.mark.parametrize(("deployment", "why"), [({}, "on CPUs rejects"), (GPU, "not the target's")])
def test_synthetic_acceptance(tmp_path: Path, deployment: dict[str, Any], why: str) -> None:
    engine = drafting("ngram", prompt_lookup_max=4, rejection_sample_method="synthetic") | deployment
    finding = one(found(fleet(tmp_path, PLAIN, engine), "synthetic"))
    assert finding.level == "problem"
    assert why in finding.why
    assert not found(fleet(tmp_path, PLAIN, drafting("ngram", rejection_sample_method="standard")), "synthetic")


def test_engines_that_are_the_same(tmp_path: Path) -> None:
    twin = {**SUFFIX, "name": "twin"}
    assert one(found(fleet(tmp_path, PLAIN, SUFFIX, twin), "duplicate_drafters")).where == "engines.2"
    assert one(found(fleet(tmp_path, PLAIN, {"name": "again"}), "duplicate_drafters")).where == "engines.1"
    longer = {**twin, "drafter": {**SUFFIX["drafter"], "num_speculative_tokens": 4}}
    assert not found(fleet(tmp_path, PLAIN, SUFFIX, longer), "duplicate_drafters")
