"""Optional packages: a command that needs them names the extra to install."""

from importlib.util import find_spec

from draftpick.engines.errors import DraftpickError

EXTRAS = {
    "serve": {"ray": "Ray"},
    "epp": {"grpc": "gRPC"},
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
"""By extra: imported modules and their packages. `gpu` installs vLLM for GPUs instead of that of `cpu`."""


class MissingExtra(DraftpickError):
    """Packages of an extra are missing; the message names them and the command to install them."""


def require(*extras: str) -> None:
    """Raise `MissingExtra` unless the modules of these extras are installed. Imports nothing."""
    missing = {title: extra for extra in extras for module, title in EXTRAS[extra].items() if find_spec(module) is None}
    if missing:
        names = ",".join(dict.fromkeys(missing.values()))
        on_gpus = " (on GPUs: 'draftpick[gpu]')" if "cpu" in missing.values() else ""
        raise MissingExtra(f"needs {', '.join(missing)}: pip install 'draftpick[{names}]'{on_gpus}")
