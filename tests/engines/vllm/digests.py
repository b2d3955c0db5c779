"""Digests of the functions of vLLM that a module of ours was written for."""

import hashlib
import importlib
import inspect
from collections.abc import Mapping
from functools import reduce


def digest(name: str) -> str:
    """Digest of the source of `module:qualified.name`, empty if there is none of that name."""
    module, _, path = name.partition(":")
    try:
        source = inspect.getsource(reduce(getattr, path.split("."), importlib.import_module(module)))
    except (ImportError, AttributeError):
        return ""
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def changed(relied_on: Mapping[str, str]) -> list[str]:
    """Names whose source is another than when their digests were noted."""
    return [name for name, known in relied_on.items() if digest(name) != known]
