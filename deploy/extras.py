"""Packages that the core does without: a command that needs them says which extra brings them."""

from importlib.util import find_spec

from draftpick.engines.errors import DraftpickError

EXTRAS = {
    "serve": {"ray": "Ray"},
    "train": {
        "pyarrow": "PyArrow",
        "sklearn": "scikit-learn",
        "scipy": "SciPy",
        "matplotlib": "Matplotlib",
        "torch": "PyTorch",
        "sentence_transformers": "Sentence Transformers",
    },
    "cpu": {"vllm": "vLLM"},
}
"""By extra, what commands import of it, and its name. `gpu` brings the vLLM of GPUs in place of `cpu`."""


class MissingExtra(DraftpickError):
    """Packages of an extra are not installed; says which, and how to install them."""


def require(*extras: str) -> None:
    """Raise `MissingExtra` unless what commands import of these extras is installed. Imports nothing."""
    missing = {title: extra for extra in extras for module, title in EXTRAS[extra].items() if find_spec(module) is None}
    if missing:
        names = ",".join(dict.fromkeys(missing.values()))
        on_gpus = " (on GPUs: 'draftpick[gpu]')" if "cpu" in missing.values() else ""
        raise MissingExtra(f"needs {', '.join(missing)}: pip install 'draftpick[{names}]'{on_gpus}")
