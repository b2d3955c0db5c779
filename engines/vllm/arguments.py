"""Arguments of `vllm serve` for an engine of a fleet: those of its drafters, and what the router reads from it."""

import json
from typing import Any

from draftpick.engines.config import EMBEDDED, Drafter, Engine, FleetConfig
from draftpick.engines.models.cpu import computes_bfloat16
from draftpick.engines.models.paths import drafter_model, target_path
from draftpick.engines.vllm.plugin import KERNELS
from draftpick.engines.vllm.pool_options import pool_arguments

V1_RUNNER = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
"""Environment of a pool: vLLM's second model runner, the default for heads on GPUs, takes no ragged drafts."""
_NORMS = [KERNELS, "native"]
_ON_CPUS = {
    # A seeded request with a split prefill kills vLLM's CPU worker (0.29: "CPU Generator does not use offset").
    "enable_chunked_prefill": False,
    "ir_op_priority": {"rms_norm": _NORMS, "fused_add_rms_norm": _NORMS},
}
_METRICS = {"enable_per_request_metrics": True}
_PAGES = "draftpick.engines.vllm.middleware.VLLMPages"


def engine_arguments(config: FleetConfig, engine: Engine) -> dict[str, Any]:
    """Return all arguments of an engine but its model."""
    arguments = common_arguments(config, engine)
    arguments["middleware"] = [*arguments.get("middleware", []), _PAGES]
    drafting: dict[str, Any] = {}
    if engine.drafters is not None:
        drafting = pool_arguments(engine.drafters)
    elif engine.drafter is not None:
        drafting["speculative_config"], options = speculation(engine.drafter)
        if options:
            drafting["additional_config"] = {"drafter": options}
        # vLLM rejects this flag at startup on an engine without a drafter.
        arguments.setdefault("per_request_spec_decode_metrics", "summary")
    if "additional_config" in drafting:
        drafting["additional_config"] = {**arguments.get("additional_config", {}), **drafting["additional_config"]}
    return arguments | drafting


def common_arguments(config: FleetConfig, engine: Engine) -> dict[str, Any]:
    """Merge the arguments without the drafter: ours, then the fleet's, then the engine's; the last wins."""
    defaults: dict[str, Any] = {}
    if engine.deployment.accelerator == "cpu":
        defaults = dict(_ON_CPUS)
        # Twice the memory, too much to claim for a target of any size.
        if config.target.source == EMBEDDED and not computes_bfloat16():
            defaults["dtype"] = "float32"
    return {**_METRICS, **defaults, **config.engine_kwargs, **engine.engine_kwargs}


def speculation(drafter: Drafter) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (vLLM's `speculative_config`, our own options for `additional_config`)."""
    if (class_path := drafter.spec.class_path) is not None:
        k = drafter.num_speculative_tokens
        return {"method": "custom_class", "model": class_path, "num_speculative_tokens": k}, drafter.model_extra or {}
    config = drafter.model_dump(exclude_none=True)
    ours = drafter.spec.added_options
    options = {name: config.pop(name) for name in ours.model_fields if name in config} if ours else {}
    if model := drafter_model(drafter):
        config["model"] = model
    return config, options


def command_line(config: FleetConfig, engine: Engine) -> list[str]:
    """Return the words after `vllm serve`: the model, then flags."""
    words = [target_path(config.target), "--served-model-name", config.target.name]
    for name, value in engine_arguments(config, engine).items():
        flag = name.replace("_", "-")
        match value:
            case bool():
                words.append(f"--{flag}" if value else f"--no-{flag}")
            case list() if name == "middleware":
                words += [word for one in value for word in (f"--{flag}", str(one))]
            case dict() | list():
                words += [f"--{flag}", json.dumps(value, separators=(",", ":"))]
            case _:
                words += [f"--{flag}", str(value)]
    return words
