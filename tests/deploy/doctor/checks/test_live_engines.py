"""What running engines said of themselves."""

from dataclasses import replace
from pathlib import Path

import pytest

from draftpick.deploy.doctor import examine
from draftpick.deploy.doctor.context import DoctorContext
from draftpick.deploy.doctor.findings import Finding
from draftpick.deploy.doctor.probe import RunningEngine, ServedModel
from draftpick.router.config.router_config import load_config
from tests.deploy.doctor.ward import CPU_MACHINE, DRAFTING, WELL, fleet, found, one


def asked(
    tmp_path: Path, check: str, baseline: RunningEngine = WELL, suffix: RunningEngine = DRAFTING
) -> list[Finding]:
    return found(fleet(tmp_path), check, running={"plain": baseline, "suffix": suffix})


def test_healthy_engines(tmp_path: Path) -> None:
    case = DoctorContext(load_config(fleet(tmp_path)), CPU_MACHINE, running={"plain": WELL, "suffix": DRAFTING})
    assert [finding for finding in examine(case) if finding.level in ("problem", "warning")] == []


OTHER = WELL.answer and replace(WELL.answer, text="two, three")
LATER = WELL.answer and replace(WELL.answer, text="one, too")


@pytest.mark.parametrize(
    ("check", "baseline", "level", "what"),
    [
        ("answers", RunningEngine("http://e", error="does not answer"), "problem", "does not answer"),
        ("answers", replace(WELL, answer=None), "problem", "no answer to a short chat"),
        (
            "same_model",
            replace(WELL, models=(ServedModel("other", "/models/target", 2048),)),
            "problem",
            "serves other",
        ),
        ("same_model", replace(WELL, models=(ServedModel("smollm2-135m-instruct", "/o", 2048),)), "warning", "loaded"),
        ("same_length", replace(WELL, models=(ServedModel("smollm2-135m-instruct", None, 99),)), "warning", "plain 99"),
        ("engine_versions", replace(WELL, version="0.28.0"), "warning", "vLLM 0.28.0"),
        ("engine_versions", replace(WELL, version="0.30.1"), "note", "0.29.0"),
        ("same_tokens", replace(WELL, tokens=(1, 2)), "problem", "differently from"),
        ("same_answer", replace(WELL, answer=OTHER), "warning", "from the first word on"),
        ("same_answer", replace(WELL, answer=LATER), "note", "differently from plain"),
        ("load_pages", replace(WELL, load=False), "note", "/draftpick/load is 404"),
        ("awake", replace(WELL, samples={"vllm:engine_sleep_state:awake": 0.0}), "problem", "sleeps"),
        ("awake", replace(WELL, open_to_developers=True), "warning", "development"),
        ("caches", replace(WELL, cache={"enable_prefix_caching": "False"}), None, ""),
    ],
)
def test_what_engines_say(tmp_path: Path, check: str, baseline: RunningEngine, level: str | None, what: str) -> None:
    assert not asked(tmp_path, check)
    findings = asked(tmp_path, check, baseline=baseline)
    assert [finding.level for finding in findings][:1] == ([level] if level else [])
    assert all(what in finding.what for finding in findings[:1])


def test_the_number_of_tokens_tells_where_tokens_are_not_shown(tmp_path: Path) -> None:
    assert WELL.answer is not None
    longer = replace(WELL, tokens=None, answer=replace(WELL.answer, prompt_tokens=30))
    assert one(asked(tmp_path, "same_tokens", baseline=longer)).level == "problem"
    assert not asked(tmp_path, "same_tokens", baseline=replace(WELL, tokens=None))


def test_answers_without_metrics(tmp_path: Path) -> None:
    assert WELL.answer is not None
    assert not asked(tmp_path, "metrics_of_answers")
    blind = replace(DRAFTING, answer=replace(WELL.answer, metrics=None))
    assert "--per-request-spec-decode-metrics" in one(asked(tmp_path, "metrics_of_answers", suffix=blind)).cure
    plain = replace(WELL, answer=replace(WELL.answer, metrics=None))
    assert "--per-request-spec-decode" not in one(asked(tmp_path, "metrics_of_answers", baseline=plain)).cure
    half_blind = replace(DRAFTING, answer=WELL.answer)
    assert "no acceptance metrics" in one(asked(tmp_path, "metrics_of_answers", suffix=half_blind)).what


def sampled(**changes: float) -> RunningEngine:
    names = {f"vllm:{name}": value for name, value in changes.items()}
    return replace(DRAFTING, samples={**DRAFTING.samples, **names})


def test_drafters_that_are_lost(tmp_path: Path) -> None:
    assert not asked(tmp_path, "lost_drafters")
    lost = sampled(spec_decode_num_accepted_tokens_total=3)
    assert "3 of 3000 drafted tokens" in one(asked(tmp_path, "lost_drafters", suffix=lost)).what
    silent = sampled(spec_decode_num_draft_tokens_total=0, generation_tokens_total=5000)
    assert one(asked(tmp_path, "lost_drafters", suffix=silent)).level == "warning"
    assert "without the configured drafter" in one(asked(tmp_path, "lost_drafters", suffix=WELL)).what
    fresh = sampled(spec_decode_num_draft_tokens_total=30, spec_decode_num_accepted_tokens_total=0)
    assert not asked(tmp_path, "lost_drafters", suffix=fresh)


def test_drafts_that_are_too_long(tmp_path: Path) -> None:
    assert not asked(tmp_path, "draft_length")
    long = replace(DRAFTING, positions=(600.0, 300.0, 40.0, 10.0))
    assert one(asked(tmp_path, "draft_length", suffix=long)).cure == "num_speculative_tokens: 2"


def test_lumps_of_an_engine_without_a_drafter(tmp_path: Path) -> None:
    assert WELL.answer is not None
    assert not asked(tmp_path, "uneven_streams")  # the other engine drafts: several tokens at a time are its business
    lumpy = replace(WELL, answer=replace(WELL.answer, events=2))
    assert "4.0 tokens at a time" in one(asked(tmp_path, "uneven_streams", baseline=lumpy)).what


def test_caches_that_differ_or_are_too_small(tmp_path: Path) -> None:
    on, off = ({"enable_prefix_caching": value} for value in ("True", "False"))
    both = asked(tmp_path, "caches", replace(WELL, cache=on), replace(DRAFTING, cache=off))
    assert one(both).level == "warning"
    full = sampled(request_success_total=100, num_preemptions_total=9)
    assert "preempted" in one(asked(tmp_path, "caches", suffix=full)).what


def test_a_pool_that_says_nothing_of_its_drafters_is_none(tmp_path: Path) -> None:
    pool = {"name": "pool", "url": "http://e:8000", "drafters": [{"name": "copy", "method": "ngram"}]}
    config = fleet(tmp_path, {"name": "plain"}, pool)
    reports = {"speculative_decoding": {"drafters": {"copy": {"steps": 3, "scored": 3, "tau": 1.5}}}}
    assert WELL.answer is not None
    real = replace(WELL, answer=replace(WELL.answer, metrics=reports))
    assert not found(config, "pools", running={"plain": WELL, "pool": real})
    finding = one(found(config, "pools", running={"plain": WELL, "pool": DRAFTING}))
    assert (finding.level, finding.where) == ("warning", "pool")
    assert not found(config, "pools", running={"plain": WELL})
