"""The assets of operation agree with the code and with one another: Serve files, Dockerfiles, Compose, monitoring."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from draftpick.deploy.app import APP_NAME, build
from draftpick.deploy.config import FLEETS
from draftpick.router.config.router_config import DraftpickConfig, load_config

ROOT = Path(__file__).parents[2]
SERVE = ROOT / "deploy" / "serve"
CLUSTER = SERVE / "cluster.yaml"
DOCKER = ROOT / "deploy" / "docker"
COMPOSE = ROOT / "deploy" / "compose" / "compose.yaml"
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
LOCK_INSTALL = "pip install --no-deps -r requirements-cpu.lock"


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def serve_config(path: Path) -> dict[str, Any]:
    """The Serve configuration in a Serve file."""
    (config,) = documents(path)
    found: dict[str, Any] = config
    return found


def args(path: Path) -> dict[str, Any]:
    (application,) = serve_config(path)["applications"]
    found: dict[str, Any] = application["args"]
    return found


def fleet(path: Path) -> DraftpickConfig:
    """The fleet that a Serve file starts."""
    given = args(path)
    return load_config(FLEETS / f"{given['config']}.yaml" if set(given) == {"config"} else given)


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


def tool(name: str) -> str:
    """Path of a command that a development package brings, or that the system has; skips the test without it."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if (found := shutil.which(name, path=path)) is None:
        pytest.skip(f"{name} is not installed")
    return found


def compose() -> dict[str, Any]:
    (found,) = documents(COMPOSE)
    assert isinstance(found, dict)
    return found


DOCKERFILES = ["cpu.Dockerfile", "gpu.Dockerfile"]
PINNED = re.compile(r":v?\d+\.\d+\.\d+")
SERVE_FILES = [SERVE / "one-machine.yaml", CLUSTER]
by_name = pytest.mark.parametrize("path", SERVE_FILES, ids=lambda path: path.stem)


YAML = [path for path in sorted((ROOT / "deploy").rglob("*.y*ml")) if "templates" not in path.parts]


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.stem)
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


def test_lock_is_installed_as_make_does() -> None:
    runs = [rest for word, rest in instructions("cpu.Dockerfile") if word == "RUN"]
    assert LOCK_INSTALL in runs
    assert LOCK_INSTALL in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_project_is_installed_without_dependencies(name: str) -> None:
    runs = [rest for word, rest in instructions(name) if word == "RUN"]
    (install,) = [run for run in runs if " /src" in run]
    _, _, command = install.rpartition("pip ")
    assert shlex.split(command)[:2] == ["install", "--no-deps"]
    made = [line.strip() for line in (ROOT / "Makefile").read_text().splitlines() if line.endswith(" -e .")]
    if name == "cpu.Dockerfile":  # of the checkout itself the embedded drafters are a part
        drafters = "/src/engines/drafters/weights"
        assert [line.partition("/pip ")[2].replace(" -e .", f" /src {drafters}") for line in made] == [command]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_image_runs_as_a_user_and_tells_its_health(name: str) -> None:
    found = instructions(name)
    assert [rest for word, rest in found if word == "USER"] == ["10001:10001"]
    assert any("useradd --create-home --uid 10001" in rest for word, rest in found if word == "RUN")
    assert [rest for word, rest in found if word == "EXPOSE"] == ["8000"]
    (health,) = [rest for word, rest in found if word == "HEALTHCHECK"]
    assert "http://127.0.0.1:8000/health" in health
    assert "wget" in health
    # KubeRay's probes call it, too.
    assert any("apt-get install" in rest and "wget" in rest.split() for word, rest in found if word == "RUN")
    (command,) = [yaml.safe_load(rest) for word, rest in found if word == "CMD"]
    assert command[:2] == ["draftpick", "serve"]
    assert command[-2:] == ["--host", "0.0.0.0"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_base_images_are_pinned(name: str) -> None:
    stages = [rest.split() for word, rest in instructions(name) if word == "FROM"]
    named = {stage[2] for stage in stages if len(stage) == 3}
    outside = [stage[0] for stage in stages if stage[0] not in named]
    assert outside
    assert all(PINNED.search(image) for image in outside)


def test_versions_agree_with_the_project() -> None:
    ray = pinned("ray", project()["optional-dependencies"]["serve"])
    vllm = pinned("vllm", project()["optional-dependencies"]["gpu"])
    values = yaml.safe_load((ROOT / "deploy" / "helm" / "draftpick" / "values.yaml").read_text())
    assert values["ray"]["version"] == ray
    (chart,) = documents(ROOT / "deploy" / "helm" / "draftpick" / "Chart.yaml")
    assert chart["appVersion"] == project()["version"]
    assert ("FROM", f"vllm/vllm-openai:v{vllm} AS base") in instructions("gpu.Dockerfile")
    assert f"ray=={ray}" in (ROOT / "requirements-cpu.lock").read_text().splitlines()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(name: str) -> None:
    ended = subprocess.run([tool("hadolint"), DOCKER / name], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


def test_a_login_shell_finds_ray() -> None:
    # KubeRay starts Ray in one, and Debian's sets its own PATH.
    runs = [rest for word, rest in instructions("cpu.Dockerfile") if word == "RUN"]
    assert any("> /etc/profile.d/draftpick.sh" in run for run in runs)


def test_nothing_of_the_image_lies_where_volumes_are_mounted() -> None:
    (environment,) = [rest for word, rest in instructions("cpu.Dockerfile") if word == "ENV" and "DRAFTPICK" in rest]
    folder = dict(part.split("=") for part in environment.split())["DRAFTPICK_CACHE"]
    assert not folder.startswith(("/home", "/tmp", "/var/lib/draftpick"))


def test_compose_takes_the_file() -> None:
    command = [tool("docker-compose"), "--file", str(COMPOSE), "--profile", "*", "config", "--quiet"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_compose_publishes_router_and_grafana_on_loopback_alone() -> None:
    services = compose()["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {
        "embedded": ["127.0.0.1:8000:8000"],
        "mock": ["127.0.0.1:8000:8000"],
        "grafana": ["127.0.0.1:3000:3000"],
    }
    assert compose()["networks"]["inside"]["internal"] is True
    assert services["prometheus"]["networks"] == ["inside"]
    assert "network_mode" not in str(services)


def test_compose_runs_without_rights_and_by_version() -> None:
    for name, service in compose()["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert "build" in service or PINNED.search(service["image"]), name


def test_compose_mounts_what_lies_here() -> None:
    services = compose()["services"]
    for name in ("prometheus", "grafana"):
        for source, target, *mode in (mount.split(":") for mount in services[name]["volumes"]):
            if source.startswith("."):
                assert (COMPOSE.parent / source).is_dir(), target
                assert mode == ["ro"], target
            else:
                assert source in compose()["volumes"]
    build_context = COMPOSE.parent / services["mock"]["build"]["context"]
    assert (build_context / services["mock"]["build"]["dockerfile"]).is_file()
    default = compose()["secrets"]["metrics-key"]["file"].removeprefix("${METRICS_KEY_FILE:-").removesuffix("}")
    assert (COMPOSE.parent / default).read_text() == "none\n", "no key at all"


def test_prometheus_takes_its_file(tmp_path: Path) -> None:
    promtool = tool("promtool")
    folder = shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    config = folder / "prometheus.yml"
    (tmp_path / "key").write_text("none")
    config.write_text(config.read_text().replace("/run/secrets/metrics-key", str(tmp_path / "key")))
    ended = subprocess.run([promtool, "check", "config", config], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_prometheus_reads_the_router_of_the_composition() -> None:
    (config,) = documents(PROMETHEUS / "prometheus.yml")
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["draftpick:8000"]}]
    services = compose()["services"]
    assert all(services[name]["networks"]["inside"]["aliases"] == ["draftpick"] for name in ("embedded", "mock"))
    secret = Path(job["authorization"]["credentials_file"])
    assert secret.parent == Path("/run/secrets")
    assert secret.name in services["prometheus"]["secrets"]


def test_grafana_finds_prometheus_and_its_dashboards() -> None:
    service = compose()["services"]["grafana"]
    (mounted,) = [mount.split(":")[1] for mount in service["volumes"] if mount.startswith("..")]
    assert service["environment"]["GF_PATHS_PROVISIONING"] == f"{mounted}/provisioning"
    (sources,) = documents(GRAFANA / "provisioning" / "datasources" / "prometheus.yaml")
    (source,) = sources["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (dashboards,) = documents(GRAFANA / "provisioning" / "dashboards" / "draftpick.yaml")
    (provider,) = dashboards["providers"]
    assert provider["options"]["path"] == f"{mounted}/dashboards"


def test_docker_context_holds_what_the_build_needs() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    packages = {"draftpick", "engines", "router", "policy_training", "deploy"}
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
