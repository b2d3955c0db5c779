"""What a router of `draftpick route` imports, where everything is installed: none of what the core does without."""

import subprocess
import sys

import pytest

HEAVY = {
    *("huggingface_hub", "jinja2", "matplotlib", "numba", "opentelemetry.sdk", "optuna", "pandas", "pyarrow", "ray"),
    *("scipy", "sentence_transformers", "sklearn", "torch", "transformers", "vllm"),
}
ROUTER = """
from draftpick.deploy.config import resolve
from draftpick.deploy.launch import standalone
from draftpick.router.router import Router, fixed_address
arms = ("plain", "suffix", "hybrid", "general")
engines = [{"name": arm, "url": "http://127.0.0.1:9"} for arm in arms]
router = {"policy": "embedded", "default_engine": "plain"}
config = resolve({"target": {"name": "any"}, "engines": engines, "router": router})
Router(config, {arm: fixed_address("http://127.0.0.1:9") for arm in arms})
import uvicorn, uvloop
"""
COMMANDS = """
import importlib
from draftpick.deploy.cli import main
from draftpick.deploy.doctor import examine
from draftpick.deploy.doctor.inputs import addresses_of, read_context
examine(read_context("mock", {}, "127.0.0.1", 0.1))
import draftpick.policy_training.data.collect, draftpick.router.registry.registry, draftpick.router.http.auth
"""


@pytest.mark.parametrize("code", [ROUTER, COMMANDS], ids=["router", "commands"])
def test_nothing_heavy_is_imported(code: str) -> None:
    look = f"import sys\nprint(*sorted({HEAVY!r} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", f"{code}\n{look}"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == []
