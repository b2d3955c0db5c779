"""Import names of the release before `draftpick.*`: each still means the same object, and warns once."""

import importlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from draftpick.former_names import MOVED

ROOT = Path(__file__).parents[1]
FORMER = {
    "deploy.app:build": "draftpick.deploy.app:build",
    "deploy.cli:main": "draftpick.deploy.cli.main:main",
    "deploy.examples.summaries:build": "draftpick.deploy.examples.summaries:build",
    "engines.drafters.hybrid:HybridProposer": "draftpick.engines.drafters.hybrid:HybridProposer",
    "engines.drafters.trigram:TrigramProposer": "draftpick.engines.drafters.trigram.proposer:TrigramProposer",
    "engines.serve:scale_on_demand": "draftpick.engines.deployment:scale_on_demand",
    "engines.vllm_pages:VLLMPages": "draftpick.engines.vllm.middleware:VLLMPages",
    "engines.vllm_plugin:register": "draftpick.engines.vllm.plugin:register",
}
"""What Serve files, `--middleware`, entry points and vLLM's configurations named, and where it is."""


def named(string: str) -> object:
    module, _, attribute = string.partition(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.fixture(autouse=True)
def as_at_the_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No former name has been imported yet, and none is left behind."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    packages = ("deploy", "engines")
    before = dict(sys.modules)
    for name in before:
        if name.split(".")[0] in packages:
            del sys.modules[name]
    yield
    for name in set(sys.modules) - before.keys():
        if name.split(".")[0] in packages:
            del sys.modules[name]


@pytest.mark.parametrize("former", FORMER)
def test_a_former_name_is_the_same_object_and_warns(former: str) -> None:
    module = former.partition(":")[0]
    with pytest.warns(FutureWarning) as warned:
        found = named(former)
    assert found is named(FORMER[former])
    assert f"{module} is now {FORMER[former].partition(':')[0]}; " in str(warned[-1].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert named(former) is found, "the second time it does not warn"


@pytest.mark.vllm
def test_a_former_name_of_what_needs_vllm() -> None:
    with pytest.warns(FutureWarning):
        assert named("engines.vllm_stats:LoadStats") is named("draftpick.engines.vllm.stat_logger:LoadStats")


def test_modules_keep_their_own_names() -> None:
    with pytest.warns(FutureWarning):
        importlib.import_module("engines.vllm_pages")
    module = importlib.import_module("draftpick.engines.vllm.middleware")
    assert module.__name__ == "draftpick.engines.vllm.middleware"
    assert module.__spec__ is not None
    assert module.__spec__.name == module.__name__


def test_each_former_module_is_where_the_table_says() -> None:
    for name in MOVED.values():
        assert importlib.util.find_spec(name) is not None, name


def test_an_unknown_module_is_said_to_be_missing() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"draftpick\.engines\.no_such_module"):
        importlib.import_module("engines.no_such_module")


def test_new_names_do_not_warn() -> None:
    code = "import draftpick.deploy.cli.main, draftpick.engines.vllm.middleware, draftpick.router.router"
    found = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
