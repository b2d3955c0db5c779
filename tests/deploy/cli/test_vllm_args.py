"""`draftpick vllm-args`: what `vllm serve` is given."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from draftpick.engines.errors import ConfigError
from tests.deploy.cli.test_main import invoke

ENGINES = [
    {"name": "plain", "engine_kwargs": {"max_model_len": 512, "enforce_eager": True}},
    {
        "name": "pool",
        "drafters": [
            {"name": "general", "method": "eagle3", "model": "embedded:general", "num_speculative_tokens": 4},
            {"name": "ngram", "method": "ngram", "num_speculative_tokens": 6},
        ],
    },
    {"name": "far", "url": "http://127.0.0.1:9"},
]


@pytest.fixture
def fleet(tmp_path: Path) -> str:
    path = tmp_path / "fleet.yaml"
    router = {"policy": "uniform", "default_engine": "plain"}
    path.write_text(yaml.safe_dump({"target": {"name": "m"}, "engines": ENGINES, "router": router}))
    return str(path)


def flags(*arguments: str) -> dict[str, Any]:
    """The flags with their values, True for those without."""
    run = invoke("vllm-args", *arguments)
    assert run.exit_code == 0, run.stderr
    _, *rest = shlex.split(run.stdout)
    found: dict[str, Any] = {}
    for word in rest:
        if word.startswith("--"):
            found[name := word] = True
        else:
            found[name] = json.loads(word) if word.startswith("{") else word
    return found


def test_the_pool_of_a_fleet_is_what_vllm_becomes(fleet: str) -> None:
    found = flags(fleet)
    assert found["--served-model-name"] == "m"
    assert found["--speculative-config"]["num_speculative_tokens"] == 6
    assert Path(found["--speculative-config"]["model"]).name == "general"
    names = [one["name"] for one in found["--additional-config"]["draftpick_pool"]["drafters"]]
    assert names == ["general", "ngram"]
    assert "PoolScheduler" in found["--scheduler-cls"]


def test_any_engine_may_be_named(fleet: str) -> None:
    found = flags(fleet, "--engine", "plain")
    assert found["--max-model-len"] == "512"
    assert found["--enforce-eager"] is True
    assert found["--no-enable-chunked-prefill"] is True
    assert "--speculative-config" not in found


def test_an_engine_that_vllm_does_not_run_is_an_error_with_a_fix(fleet: str) -> None:
    error = invoke("vllm-args", fleet, "--engine", "far").exception
    assert isinstance(error, ConfigError)
    assert "engines: plain, pool" in str(error)
