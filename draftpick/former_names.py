"""Import names of the release before `draftpick.*`: they still work, and warn. To be removed with the next release."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "deploy.cli": "draftpick.deploy.cli.main",
    "engines.drafters.trigram": "draftpick.engines.drafters.trigram.proposer",
    "engines.llm_server": "draftpick.engines.vllm.llm_server",
    "engines.serve": "draftpick.engines.deployment",
    "engines.vllm_pages": "draftpick.engines.vllm.middleware",
    "engines.vllm_plugin": "draftpick.engines.vllm.plugin",
    "engines.vllm_stats": "draftpick.engines.vllm.stat_logger",
}
"""Modules that command lines, configurations and entry points of users name, and where they are now."""


class _FormerModules(MetaPathFinder, Loader):
    """Finds the submodules of a package that was imported by its former name."""

    def __init__(self, package: str) -> None:
        self._prefix = f"{package}."

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname.startswith(self._prefix) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        name = MOVED.get(spec.name, f"draftpick.{spec.name}")
        module = importlib.import_module(name)
        text = f"{spec.name} is now {name}; the former name goes with the next release"
        warnings.warn(text, FutureWarning, stacklevel=2)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Keep the module as it is: the import system has replaced its spec by that of the former name."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def redirect(package: str) -> None:
    """Let `package`, imported by its former name, stand for `draftpick.<package>`, and its modules likewise."""
    sys.meta_path.insert(0, _FormerModules(package))
    sys.modules[package] = importlib.import_module(f"draftpick.{package}")
