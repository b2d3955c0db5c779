"""The chart: what Helm makes of it, and whether Kubernetes, Ray Serve and our own configuration would take that."""

import importlib
import importlib.util
import json
import os
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator
from ray.serve.schema import ServeDeploySchema

from draftpick.deploy.app import APP_NAME, build
from draftpick.deploy.config import resolve
from draftpick.deploy.generate.manifests import CHART, PLAIN, SCHEMA, example, plain, render, schema
from draftpick.deploy.launch import ray_serve as running
from tests.deploy import kube
from tests.deploy.kube import ray_service_args, serve_config
from tests.deploy.test_examples import as_the_head_checks, each_example

needs_helm = pytest.mark.skipif(
    importlib.util.find_spec("helm_python") is None, reason="helm-python-sdk, which renders the chart, is not installed"
)


def defaults() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return values


def merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """As Helm merges: maps key by key, all else replaced."""
    found = deepcopy(values)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both else value
    return found


def refused(values: dict[str, Any]) -> set[str]:
    """Paths of what the chart's schema refuses."""
    return set(kube.problems(Draft202012Validator(json.loads(SCHEMA.read_text())), merged(defaults(), values)))


def objects(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What Helm makes of these values, by kind."""
    made = render(values)
    documents = [d for name, text in made.items() if name != "NOTES" for d in yaml.safe_load_all(text) if d]
    return {document["kind"]: document for document in documents}


def changed(name: str, **over: Any) -> dict[str, Any]:
    return merged(example(name), over)


def pods(ray_service: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Specifications of head and workers."""
    cluster = ray_service["spec"]["rayClusterConfig"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {name: group["template"]["spec"] for name, group in {"head": cluster["headGroupSpec"], **groups}.items()}


# --- values and their schema: always ---


def test_schema_is_that_of_the_configuration() -> None:
    text = SCHEMA.read_text()
    assert json.loads(text) == json.loads(schema(text)), "python -m draftpick.deploy.generate.manifests"


def test_schema_knows_the_values_and_no_others() -> None:
    known = json.loads(SCHEMA.read_text())["properties"]
    values = defaults()
    assert set(known) == {*values, "global"}
    for name, value in values.items():
        properties = known[name].get("properties", {}) if name != "fleet" else {}
        assert not properties or set(properties) == set(value), name
        assert known[name].get("additionalProperties", False) is False, name


def test_only_fleet_and_workers_have_no_default() -> None:
    assert refused({}) == {"fleet", "workerGroups"}


@each_example
def test_example_is_accepted(name: str) -> None:
    assert refused(example(name)) == set()


@pytest.mark.parametrize(
    ("over", "path"),
    [
        ({"imgae": {}}, ""),
        ({"image": {"tga": "1"}}, "image"),
        ({"fleet": {"engnies": []}}, "fleet"),
        (
            {"fleet": {"router": {"default_engine": "plain", "exploration": {"rate": 2}}}},
            "fleet.router.exploration.rate",
        ),
        ({"workerGroups": [{"name": "a", "replicas": 1, "cpus": "1", "memory": "1Gi"}]}, "workerGroups.0.cpus"),
        ({"head": {"podSpec": {"hostNetwork": True}}}, "head.podSpec"),
        ({"keys": {"existingSecret": "dp-Zm9v+/=="}}, "keys.existingSecret"),
        ({"upgradeStrategy": "Recreate"}, "upgradeStrategy"),
    ],
)
def test_wrong_values_are_refused_with_their_path(over: dict[str, Any], path: str) -> None:
    assert path in refused(changed("mock", **over))


# --- what Helm makes of the chart ---


@needs_helm
def test_generated_files_are_those_of_the_chart() -> None:
    there = {path.name: path.read_text() for path in PLAIN.glob("*.yaml")}
    assert there == plain(), "python -m draftpick.deploy.generate.manifests"


@needs_helm
@each_example
def test_lint_finds_nothing(name: str) -> None:
    helm: Any = importlib.import_module("helm_python")
    report = helm.lint(CHART, example(name), strict=True)
    assert report["errors"] == []
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


@needs_helm
@each_example
def test_kubernetes_takes_what_is_rendered(name: str) -> None:
    found = objects(example(name))
    assert {"RayService", "ServiceAccount", "NetworkPolicy", "Pod"} <= set(found)
    for document in found.values():
        kube.check(document)


@needs_helm
@each_example
def test_serve_and_draftpick_take_the_fleet(name: str, tmp_path: Path) -> None:
    ray_service = objects(changed(name, keys={"existingSecret": ""}))["RayService"]  # no Secret is mounted here
    parsed = ServeDeploySchema.model_validate(serve_config(ray_service))
    assert set(serve_config(ray_service)) <= set(ServeDeploySchema.model_fields), "Serve ignores what it does not know"
    (application,) = parsed.applications
    assert application.name == APP_NAME
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    config = as_the_head_checks(ray_service_args(ray_service), tmp_path)
    assert config.engine_host == "node"
    assert config.arms == resolve(example(name)["fleet"]).arms
    assert config.engine_kwargs == example(name)["fleet"].get("engine_kwargs", {}), "numbers stay what they are"


@needs_helm
def test_the_users_fleet_wins() -> None:
    records = {"dir": "/elsewhere", "queue_size": 7}
    fleet = changed("llama-8b", fleet={"engine_host": "0.0.0.0", "router": {"records": records}})
    found = ray_service_args(objects(fleet)["RayService"])
    assert found["engine_host"] == "0.0.0.0"
    assert found["router"]["records"] == records


@needs_helm
def test_haproxy_is_set_as_by_our_own_command() -> None:
    for name, pod in pods(objects(example("mock"))["RayService"]).items():
        found = {variable["name"]: variable.get("value") for variable in pod["containers"][0]["env"]}
        assert found == running._PROXY, name
    without = pods(objects(changed("mock", ray={"haProxy": False}))["RayService"])
    assert all("env" not in pod["containers"][0] for pod in without.values())


@needs_helm
@each_example
def test_pods_have_no_rights(name: str) -> None:
    found = objects(example(name))
    everywhere = {**pods(found["RayService"]), "test": found["Pod"]["spec"]}
    if "CronJob" in found:
        everywhere["retraining"] = found["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        everywhere["keeper"] = found["Deployment"]["spec"]["template"]["spec"]
    autoscaled = found["RayService"]["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"]
    for pod_name, pod in everywhere.items():
        security = pod["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 10001), pod_name
        # The autoscaler in the head's pod speaks to Kubernetes, with an account of KubeRay's.
        assert pod.get("automountServiceAccountToken") is (None if autoscaled and pod_name == "head" else False)
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
            assert not {"readinessProbe", "livenessProbe"} & set(container), "KubeRay brings its own probes"


@needs_helm
def test_labels_of_pods_do_not_change_with_the_chart() -> None:
    found = objects(example("llama-8b"))
    cluster = found["RayService"]["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    selector = found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    assert all(group["template"]["metadata"]["labels"] == selector for group in groups)
    assert set(selector) == {"app.kubernetes.io/name", "app.kubernetes.io/instance"}


@needs_helm
def test_secrets_are_named_and_never_written() -> None:
    keys = {"existingSecret": "keys", "adminSecret": "admin"}
    fault = {"redisAddress": "redis:6379", "existingSecret": "redis"}
    values = changed("llama-8b", keys=keys, faultTolerance=fault, serviceMonitor={"enabled": True})
    found = objects(values)
    for document in found.values():
        kube.check(document)
    spec = found["RayService"]["spec"]
    assert ray_service_args(found["RayService"])["router"]["keys"] == {"file": "/etc/draftpick/keys/keys.yaml"}
    for name, pod in pods(found["RayService"]).items():
        mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts["keys"]["readOnly"] is True, name
        tokens = [variable for variable in pod["containers"][0]["env"] if variable["name"] == "HF_TOKEN"]
        assert [t["valueFrom"]["secretKeyRef"]["name"] for t in tokens] == ([] if name == "head" else ["draftpick"])
    password = spec["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisPassword"]
    assert password == {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "redis-password"}}}
    (endpoint,) = found["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["authorization"] == {"credentials": {"name": "admin", "key": "admin-key"}}


@needs_helm
def test_network_lets_in_what_is_listed() -> None:
    def rules(**over: Any) -> dict[tuple[int, ...], Any]:
        found = objects(changed("mock", networkPolicy=over))["NetworkPolicy"]["spec"]["ingress"]
        return {tuple(port["port"] for port in rule.get("ports", [])): rule["from"] for rule in found}

    selector = {"app.kubernetes.io/name": "draftpick", "app.kubernetes.io/instance": "draftpick"}
    among = [{"podSelector": {"matchLabels": selector}}]
    assert rules(clients=[], operator=[]) == {(): among}, "an empty list lets in nobody"
    apps = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "apps"}}}]
    found = rules(clients=apps, monitoring=apps)
    assert set(found) == {(), (8000,), (8265, 8000), (8000, 8080, 9101)}
    assert found[(8000,)] == apps
    assert "NetworkPolicy" not in objects(changed("mock", networkPolicy={"enabled": False}))


@needs_helm
def test_one_worker_may_be_evicted_at_a_time() -> None:
    assert objects(example("llama-8b"))["PodDisruptionBudget"]["spec"]["minAvailable"] == 3
    assert "PodDisruptionBudget" not in objects(example("mock")), "of a single pod none could ever be evicted"


@needs_helm
def test_retraining_shares_what_the_routers_write() -> None:
    found = objects(example("llama-70b"))
    job, keeper = found["CronJob"]["spec"], found["Deployment"]["spec"]
    assert job["concurrencyPolicy"] == "Forbid"
    assert (keeper["replicas"], keeper["strategy"]) == (1, {"type": "Recreate"})
    router = ray_service_args(found["RayService"])["router"]
    shared = [
        f"--records={router['records']['dir']}",
        f"--registry={router['policy']}",
        f"--default-engine={router['default_engine']}",
    ]
    templates = [job["jobTemplate"]["spec"]["template"], keeper["template"]]
    for template, more in zip(templates, ([], ["--watch"]), strict=True):
        (container,) = template["spec"]["containers"]
        assert container["args"] == [*shared, *more]
        claims = {v["name"]: v.get("persistentVolumeClaim") for v in template["spec"]["volumes"]}
        assert claims["data"] == {"claimName": found["PersistentVolumeClaim"]["metadata"]["name"]}
    assert templates[0]["spec"]["restartPolicy"] == "Never"


@needs_helm
def test_either_half_of_retraining_may_be_left_out() -> None:
    assert "Deployment" not in objects(changed("llama-8b", retraining={"keeper": False}))
    assert "CronJob" not in objects(changed("llama-8b", retraining={"schedule": ""}))
    assert not {"Deployment", "CronJob"} & set(objects(changed("llama-8b", retraining={"enabled": False})))


@needs_helm
@pytest.mark.parametrize(("code", "ends"), [(0, 0), (1, 1), (2, 2), (3, 0), (137, 137)])
def test_a_refused_candidate_is_no_failed_job(code: int, ends: int, tmp_path: Path) -> None:
    pod = objects(example("llama-8b"))["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    command = [*pod["containers"][0]["command"], *pod["containers"][0]["args"]]
    fake = tmp_path / "draftpick"
    fake.write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    fake.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    ended = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=False)
    assert ended.returncode == ends
    assert ended.stdout.split() == ["retrain", *pod["containers"][0]["args"]]


@needs_helm
@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"storage": {"enabled": False}}, "needs storage.enabled"),
        ({"fleet": {"router": {"policy": "fixed"}}}, "nothing else serves what it learns"),
    ],
)
def test_retraining_that_would_change_nothing_is_refused(over: dict[str, Any], says: str) -> None:
    with pytest.raises(Exception, match=says):
        render(changed("llama-8b", **over))


@needs_helm
def test_helm_refuses_what_the_schema_refuses() -> None:
    with pytest.raises(Exception, match="imgae"):
        render(changed("mock", imgae={}))


@needs_helm
def test_a_long_name_leaves_room_for_kuberays() -> None:
    names = [
        yaml.safe_load(text)["metadata"]["name"] for text in (render(example("mock"), name="a" * 53)["rayservice"],)
    ]
    assert [len(name) for name in names] == [40]


CHOICES: dict[str, list[Any]] = {
    "autoscaling.enabled": [True, False],
    "cache.existingClaim": ["", "weights"],
    "env": [[], [{"name": "NCCL_DEBUG", "value": "INFO"}]],
    "head.nodeSelector": [{}, {"disk": "ssd"}],
    "head.podSpec": [{}, {"priorityClassName": "high"}],
    "huggingFace.existingSecret": ["", "hub"],
    "image.pullSecrets": [[], ["registry"]],
    "image.tag": ["", "1.2.3"],
    "keys.adminSecret": ["", "admin"],
    "keys.existingSecret": ["", "keys"],
    "networkPolicy.enabled": [True, False],
    "podDisruptionBudget.enabled": [True, False],
    "ray.haProxy": [True, False],
    "retraining.args": [[], ["--learner=ridge"]],
    "retraining.keeper": [True, False],
    "retraining.schedule": ["", "@daily"],
    "service.annotations": [{}, {"team": "search"}],
    "serviceAccount.annotations": [{}, {"role": "records"}],
    "serviceMonitor.enabled": [True, False],
    "serviceMonitor.labels": [{}, {"release": "prometheus"}],
    "storage.existingClaim": ["", "records"],
    "storage.storageClass": ["", "fast"],
}


@needs_helm
@settings(max_examples=15, deadline=None)
@given(chosen=st.fixed_dictionaries({path: st.sampled_from(values) for path, values in CHOICES.items()}))
def test_every_combination_of_values_is_valid(chosen: dict[str, Any]) -> None:
    values = example("llama-8b")
    for path, value in chosen.items():
        group, _, name = path.partition(".")
        values = merged(values, {group: {name: value} if name else value})
    for document in objects(values).values():
        kube.check(document)


@needs_helm
def test_the_test_pod_asks_what_it_may() -> None:
    open_pod = objects(changed("mock", keys={"existingSecret": ""}))["Pod"]
    assert open_pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert "--no-key" not in open_pod["spec"]["containers"][0]["command"]
    closed = objects(changed("mock", keys={"existingSecret": "keys"}))["Pod"]
    assert closed["spec"]["containers"][0]["command"][-1] == "--no-key"
    compile(open_pod["spec"]["containers"][0]["command"][2], "test", "exec")
