"""The composition root: a configuration becomes an application of engines and a router, without a cluster."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from draftpick.engines.errors import ConfigError

FLEET: dict[str, Any] = {
    "target": {"name": "m"},
    "engines": [{"name": "plain", "kind": "mock"}, {"name": "remote", "url": "http://10.0.0.7:8000"}],
    "router": {"default_engine": "plain", "num_replicas": 2, "deployment_options": {"max_ongoing_requests": 7}},
}


def build(args: dict[str, Any]) -> Any:
    """The deployment of the router that `build` binds."""
    import ray

    from draftpick.deploy.app import build

    bound = build(args)._bound_deployment
    assert not ray.is_initialized()
    return bound


def test_a_fleet_becomes_a_router_with_a_handle_for_each_engine() -> None:
    router = build({"config": "mock"})
    config, handles = router.init_args
    assert router.name == "router"
    assert list(handles) == ["plain", "ngram", "suffix", "math"]
    assert [h._bound_deployment.name for h in handles.values()] == [f"engine-{arm}" for arm in handles]
    assert config["router"]["default_engine"] == "plain"


def test_the_configuration_itself_is_an_argument_too(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(FLEET))
    whole, named = build(FLEET), build({"config": str(tmp_path / "fleet.yaml")})
    assert whole.init_args[0] == named.init_args[0]


def test_an_external_engine_is_not_deployed() -> None:
    config, handles = build(FLEET).init_args
    assert list(handles) == ["plain"]
    assert config["engines"][1]["url"] == "http://10.0.0.7:8000/"


def test_the_users_own_options_of_the_router_win() -> None:
    router = build(FLEET)
    assert router.num_replicas == 2
    assert router.max_ongoing_requests == 7


@pytest.mark.parametrize("args", [{"config": "mok"}, {}, {"config": "mock", "router": {}}, {**FLEET, "engines": []}])
def test_wrong_arguments(args: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        build(args)
