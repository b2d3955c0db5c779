"""The assets of operation agree with the code and with one another: Serve files, the RayService, the Dockerfiles."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from deploy.app import APP_NAME, build
from deploy.config import FLEETS
from engines.serve import deployment_options
from router.config import DraftpickConfig, load_config

ROOT = Path(__file__).parents[2]
SERVE = ROOT / "deploy" / "serve"
CLUSTER = SERVE / "cluster.yaml"
RAYSERVICE = ROOT / "deploy" / "kubernetes" / "rayservice.yaml"
DOCKER = ROOT / "deploy" / "docker"
LOCK_INSTALL = "pip install --no-deps -r requirements-cpu.lock"


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def rayservice() -> dict[str, Any]:
    """The specification of the RayService."""
    (found,) = [d for d in documents(RAYSERVICE) if d["kind"] == "RayService"]
    spec: dict[str, Any] = found["spec"]
    return spec


def serve_config(path: Path) -> dict[str, Any]:
    """The Serve configuration in a Serve file or in a RayService."""
    config: dict[str, Any] = yaml.safe_load(rayservice()["serveConfigV2"] if path == RAYSERVICE else path.read_text())
    return config


def args(path: Path) -> dict[str, Any]:
    (application,) = serve_config(path)["applications"]
    found: dict[str, Any] = application["args"]
    return found


def fleet(path: Path) -> DraftpickConfig:
    """The fleet that a Serve file starts."""
    given = args(path)
    return load_config(FLEETS / f"{given['config']}.yaml" if set(given) == {"config"} else given)


def pods() -> dict[str, dict[str, Any]]:
    """The pod templates of the RayService."""
    cluster = rayservice()["rayClusterConfig"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {name: group["template"]["spec"] for name, group in {"head": cluster["headGroupSpec"], **groups}.items()}


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, the rest of its line) of a Dockerfile; continued lines are joined, comments dropped."""
    text = "\n".join(line for line in (DOCKER / name).read_text().splitlines() if not line.startswith("#"))
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line)]


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def pinned(package: str, requirements: list[str]) -> str:
    """The version to which `package` is pinned."""
    (version,) = [r.partition("==")[2] for r in requirements if re.split(r"[\[=<>~!]", r)[0] == package]
    return version


DOCKERFILES = ["cpu.Dockerfile", "gpu.Dockerfile"]
SERVE_FILES = [SERVE / "one-machine.yaml", CLUSTER, RAYSERVICE]
by_name = pytest.mark.parametrize("path", SERVE_FILES, ids=lambda path: path.stem)


@pytest.mark.parametrize("path", sorted((ROOT / "deploy").rglob("*.y*ml")), ids=lambda path: path.stem)
def test_yaml_parses(path: Path) -> None:
    assert all(isinstance(document, dict) for document in documents(path))


@by_name
def test_serve_accepts_the_file(path: Path) -> None:
    schema = ServeDeploySchema.model_validate(serve_config(path))
    (application,) = schema.applications
    assert (application.name, application.route_prefix) == (APP_NAME, "/")
    assert application.import_path == f"{build.__module__}:{build.__name__}"


@by_name
def test_serve_knows_every_field(path: Path) -> None:
    # Serve ignores fields that it does not know, and with them any typing error.
    config, fields = serve_config(path), ServeDeploySchema.model_fields
    assert set(config) <= set(fields)
    assert set(config["http_options"]) <= set(fields["http_options"].annotation.model_fields)


@by_name
def test_arguments_are_a_valid_fleet(path: Path) -> None:
    config = fleet(path)
    assert config.arms[0] == "plain"
    assert len(config.arms) >= 4
    assert all(engine.kind == "vllm" for engine in config.engines)


def test_one_machine_listens_on_loopback_alone() -> None:
    path = SERVE / "one-machine.yaml"
    assert serve_config(path)["http_options"]["host"] == "127.0.0.1"
    assert fleet(path).engine_host == "127.0.0.1"


def test_cluster_spans_nodes() -> None:
    config = fleet(CLUSTER)
    assert config.engine_host == "node"
    assert all(engine.deployment.accelerator == "gpu" for engine in config.engines)
    assert config.router.num_replicas > 1


def test_the_builder_accepts_the_cluster() -> None:
    assert build(args(CLUSTER)) is not None


def test_engines_scale_and_never_to_zero() -> None:
    for engine in fleet(CLUSTER).engines:
        scaling = engine.deployment.autoscaling
        assert scaling is not None
        fields = scaling.model_dump(exclude_none=True)
        assert set(fields) <= set(AutoscalingConfig.model_fields), "Serve ignores fields that it does not know"
        # An engine without a replica gets no request, so it would never come back.
        assert 1 <= AutoscalingConfig(**fields).min_replicas <= AutoscalingConfig(**fields).max_replicas


def test_kubernetes_serves_what_the_cluster_file_says() -> None:
    assert serve_config(RAYSERVICE) == serve_config(CLUSTER)


def test_gpu_workers_hold_what_autoscaling_allows() -> None:
    config = fleet(RAYSERVICE)
    (group,) = rayservice()["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    per_pod = int(container["resources"]["limits"]["nvidia.com/gpu"])
    bundles = {e.name: deployment_options(config, e)["placement_group_bundles"] for e in config.engines}
    gpus = {name: sum(bundle["GPU"] for bundle in of) for name, of in bundles.items()}
    scaling = {e.name: e.deployment.autoscaling for e in config.engines}
    for pods_key, replicas_key in (("minReplicas", "min_replicas"), ("maxReplicas", "max_replicas")):
        wanted = sum(gpus[name] * getattr(scaling[name], replicas_key) for name in gpus)
        assert group[pods_key] * per_pod == wanted
    assert int(group["rayStartParams"]["num-cpus"]) == int(container["resources"]["requests"]["cpu"])


def test_pods_run_unprivileged() -> None:
    uids = {rest.split("--uid ")[1].split()[0] for _, rest in instructions("gpu.Dockerfile") if "--uid " in rest}
    for name, pod in pods().items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert {str(pod["securityContext"]["runAsUser"])} == uids, name
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert not {"readinessProbe", "livenessProbe"} & set(container), "KubeRay brings its own probes"


def test_manifests_name_no_host_path() -> None:
    for path in sorted((ROOT / "deploy" / "kubernetes").rglob("*.y*ml")):
        assert "hostPath" not in path.read_text(), path.name
    for name, pod in pods().items():
        assert not pod.get("hostNetwork"), name


def test_records_lie_on_a_volume() -> None:
    folder = str(fleet(RAYSERVICE).router.records.dir)
    for name, pod in pods().items():
        (container,) = pod["containers"]
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        (volume,) = [mounted[path] for path in mounted if folder.startswith(path + "/")]
        assert volume in {v["name"] for v in pod["volumes"]}, name


def test_token_comes_from_a_secret() -> None:
    for pod in pods().values():
        for variable in pod["containers"][0].get("env", []):
            if "TOKEN" in variable["name"]:
                assert set(variable["valueFrom"]) == {"secretKeyRef"}


def test_lock_is_installed_as_make_does() -> None:
    runs = [rest for word, rest in instructions("cpu.Dockerfile") if word == "RUN"]
    assert LOCK_INSTALL in runs
    assert LOCK_INSTALL in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_project_is_installed_without_dependencies(name: str) -> None:
    runs = [rest for word, rest in instructions(name) if word == "RUN"]
    (install,) = [run for run in runs if run.endswith(" .")]
    _, _, command = install.rpartition("pip ")
    assert shlex.split(command)[:2] == ["install", "--no-deps"]
    made = [line.strip() for line in (ROOT / "Makefile").read_text().splitlines() if line.endswith(" -e .")]
    if name == "cpu.Dockerfile":
        assert [line.partition("/pip ")[2].replace(" -e .", " .") for line in made] == [command]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_image_runs_as_a_user_and_tells_its_health(name: str) -> None:
    found = instructions(name)
    assert [rest for word, rest in found if word == "USER"] == ["draftpick"]
    assert [rest for word, rest in found if word == "EXPOSE"] == ["8000"]
    (health,) = [rest for word, rest in found if word == "HEALTHCHECK"]
    assert "http://127.0.0.1:8000/health" in health
    (command,) = [yaml.safe_load(rest) for word, rest in found if word == "CMD"]
    assert command[:2] == ["draftpick", "serve"]
    assert command[-2:] == ["--host", "0.0.0.0"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_base_images_are_pinned(name: str) -> None:
    stages = [rest.split() for word, rest in instructions(name) if word == "FROM"]
    named = {stage[2] for stage in stages if len(stage) == 3}
    outside = [stage[0] for stage in stages if stage[0] not in named]
    assert outside
    assert all(re.search(r":v?\d+\.\d+", image) for image in outside)


def test_versions_agree_with_the_project() -> None:
    ray = pinned("ray", project()["dependencies"])
    vllm = pinned("vllm", project()["optional-dependencies"]["gpu"])
    assert rayservice()["rayClusterConfig"]["rayVersion"] == ray
    assert ("FROM", f"vllm/vllm-openai:v{vllm} AS base") in instructions("gpu.Dockerfile")
    assert f"ray=={ray}" in (ROOT / "requirements-cpu.lock").read_text().splitlines()


def test_docker_context_holds_what_the_build_needs() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    packages = {"engines", "router", "policy_training", "deploy"}
    assert "*" in lines
    assert kept == {
        *packages,
        "pyproject.toml",
        "requirements-cpu.lock",
        project()["readme"],
        *project()["license-files"],
    }
    assert all((ROOT / name).exists() for name in kept)


def test_license_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert text.lstrip().startswith("Apache License\n")
    assert "END OF TERMS AND CONDITIONS" in text
    assert "APPENDIX: How to apply the Apache License to your work." in text
    assert project()["license"] == "Apache-2.0"
