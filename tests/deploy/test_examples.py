"""The example values of the chart and the manifests for clusters without Helm, as they lie there: no Helm is needed."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from draftpick.deploy.config import FLEETS, resolve
from draftpick.deploy.generate.manifests import DEPLOY, EXAMPLES, PLAIN, example
from draftpick.engines.deployment import deployment_options
from draftpick.router.config.router_config import DraftpickConfig
from tests.deploy import kube
from tests.deploy.kube import ray_service_args

STATE = "/var/lib/draftpick"
KEYS = "/etc/draftpick/keys"
"""Where the chart mounts the shared volume."""
_CPUS_OF_A_ROUTER = _CPUS_OF_A_MOCK = 0.1

NAMES = sorted(path.stem for path in EXAMPLES.glob("*.yaml"))
each_example = pytest.mark.parametrize("name", NAMES)


def files() -> list[dict[str, Any]]:
    """The objects of the plain manifests."""
    return [d for path in sorted(PLAIN.glob("*.yaml")) for d in yaml.safe_load_all(path.read_text())]


def ray_service() -> dict[str, Any]:
    (found,) = [document for document in files() if document["kind"] == "RayService"]
    return found


def as_the_head_checks(fleet: dict[str, Any], folder: Path) -> DraftpickConfig:
    """A rendered fleet, checked with `folder` in the place of the shared volume."""
    (folder / "registry").mkdir()
    (folder / "keys.yaml").write_text("[]\n")
    found: dict[str, Any] = json.loads(json.dumps(fleet).replace(STATE, str(folder)).replace(KEYS, str(folder)))
    return resolve(found)


def needs(config: DraftpickConfig, bound: str) -> list[tuple[float, float]]:
    """(GPUs, CPUs) of each replica of engines and routers, the largest first; `bound`: min_replicas or max_replicas."""
    found = [(0.0, _CPUS_OF_A_ROUTER)] * config.router.num_replicas
    for engine in config.engines:
        scaling = engine.deployment.autoscaling
        replicas = getattr(scaling, bound) if scaling else engine.deployment.num_replicas
        bundles = deployment_options(config, engine).get("placement_group_bundles", [{"CPU": _CPUS_OF_A_MOCK}])
        found += [(sum(b.get("GPU", 0) for b in bundles), sum(b.get("CPU", 0) for b in bundles))] * replicas
    return sorted(found, reverse=True)


def left_over(needs: list[tuple[float, float]], room: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """(GPUs, CPUs) that stay free of each pod when whole replicas were put into them. Fails where one finds no room."""
    free = list(room)
    for gpus, cpus in needs:
        fitting = [i for i, (g, c) in enumerate(free) if gpus <= g and cpus <= c + 1e-9]
        assert fitting, f"no pod has {gpus:g} GPUs and {cpus:g} CPUs left"
        g, c = free[fitting[0]]
        free[fitting[0]] = g - gpus, c - cpus
    return free


@each_example
def test_fleet_is_valid(name: str) -> None:
    assert resolve(example(name)["fleet"]).router.default_engine == "plain"


@pytest.mark.parametrize("name", ["embedded", "mock"])
def test_a_fleet_that_ships_is_the_same_in_its_example(name: str) -> None:
    assert example(name)["fleet"] == yaml.safe_load((FLEETS / f"{name}.yaml").read_text())


def test_the_fleet_of_the_cluster_file_is_the_same_in_its_example() -> None:
    (application,) = yaml.safe_load((DEPLOY / "serve" / "cluster.yaml").read_text())["applications"]
    ours, theirs = resolve(example("llama-8b")["fleet"]), resolve(application["args"])
    assert (ours.target, ours.engines, ours.engine_kwargs) == (theirs.target, theirs.engines, theirs.engine_kwargs)


@each_example
@pytest.mark.parametrize("bound", ["min", "max"])
def test_workers_hold_whole_engines_and_no_gpu_lies_idle(name: str, bound: str) -> None:
    values = example(name)
    pods = [
        (float(group.get("gpus", 0)), float(group["cpus"]))
        for group in values["workerGroups"]
        for _ in range(group.get(f"{bound}Replicas", group["replicas"]))
    ]
    free = left_over(needs(resolve(values["fleet"]), f"{bound}_replicas"), pods)
    assert all(gpus == 0 for gpus, _ in free)


@each_example
def test_drafters_are_spread_as_vllm_wants_them(name: str) -> None:
    for engine in resolve(example(name)["fleet"]).engines:
        options = (engine.drafter.model_extra or {}) if engine.drafter else {}
        if engine.drafter is not None and (spread := options.get("draft_tensor_parallel_size")) is not None:
            parallel = engine.engine_kwargs["tensor_parallel_size"]
            assert spread in ({parallel} if engine.drafter.method == "draft_model" else {1, parallel})


@pytest.mark.parametrize("document", files(), ids=lambda document: document["kind"])
def test_kubernetes_takes_the_plain_manifests(document: dict[str, Any]) -> None:
    kube.check(document)
    assert "hostPath" not in json.dumps(document)
    assert "namespace" not in document["metadata"]


def test_strict_means_strict() -> None:
    document = ray_service()
    document["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imgae"] = "x"
    with pytest.raises(AssertionError, match="imgae"):
        kube.check(document)


def test_plain_manifests_serve_a_valid_fleet(tmp_path: Path) -> None:
    config = as_the_head_checks(ray_service_args(ray_service()), tmp_path)
    assert config.engine_host == "node"
    assert config.router.policy == str(tmp_path / "registry")
    assert config.router.records.dir == tmp_path / "records"


def test_plain_manifests_name_one_another() -> None:
    by_kind = {document["kind"]: document for document in files()}
    pod = by_kind["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]
    (account, claim) = (by_kind[kind]["metadata"]["name"] for kind in ("ServiceAccount", "PersistentVolumeClaim"))
    assert pod["spec"]["serviceAccountName"] == account
    assert {"claimName": claim} in [volume.get("persistentVolumeClaim") for volume in pod["spec"]["volumes"]]
    assert by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
