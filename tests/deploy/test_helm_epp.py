"""The chart of the endpoint picker: what Helm makes of it, and whether Kubernetes and our command would take that."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema_rs import Draft202012Validator

from draftpick.deploy.config import resolve
from draftpick.deploy.generate.manifests import (
    EPP_CHART,
    EPP_EXAMPLES,
    EPP_PLAIN,
    EPP_SCHEMA,
    example,
    plain_epp,
    schema,
)
from draftpick.deploy.generate.manifests import render as render_chart
from tests.deploy import kube
from tests.deploy.test_helm import merged, needs_helm

Document = dict[str, Any]


def values(**over: Any) -> dict[str, Any]:
    return merged(example("two-engines", EPP_EXAMPLES), over)


def objects(**over: Any) -> list[Document]:
    """What Helm makes of the example with these values."""
    made = render_chart(values(**over), "draftpick-epp", EPP_CHART)
    return [document for text in made.values() for document in yaml.safe_load_all(text) if document]


def by_kind(documents: list[Document]) -> dict[str, list[Document]]:
    found: dict[str, list[Document]] = {}
    for document in documents:
        found.setdefault(document["kind"], []).append(document)
    return found


def files() -> list[Document]:
    """The manifests as they lie there."""
    return [d for path in sorted(EPP_PLAIN.glob("*.yaml")) for d in yaml.safe_load_all(path.read_text()) if d]


def test_the_schema_is_that_of_the_configuration_and_takes_the_example() -> None:
    text = EPP_SCHEMA.read_text()
    assert json.loads(text) == json.loads(schema(text)), "python -m draftpick.deploy.generate.manifests"
    validator = Draft202012Validator(json.loads(text))
    defaults = yaml.safe_load((EPP_CHART / "values.yaml").read_text())
    assert set(json.loads(text)["properties"]) == {*defaults, "global"}
    assert kube.problems(validator, merged(defaults, values())) == {}
    assert set(kube.problems(validator, defaults)) == {"fleet", "pool.labels", "engines"}
    wrong = merged(defaults, values(failureMode="Open", imgae={}, pool={"port": 0}))
    assert set(kube.problems(validator, wrong)) == {"", "failureMode", "pool.port"}


def test_the_manifests_are_what_kubernetes_the_gateway_and_draftpick_take(tmp_path: Path) -> None:
    documents = files()
    for document in documents:
        kube.check(document)
    found = by_kind(documents)
    (pool,), (route,), (deployment,) = found["InferencePool"], found["HTTPRoute"], found["Deployment"]
    services = {service["metadata"]["name"]: service for service in found["Service"]}
    picker = services[pool["spec"]["endpointPickerRef"]["name"]]
    assert pool["spec"]["endpointPickerRef"]["port"]["number"] in [one["port"] for one in picker["spec"]["ports"]]
    assert picker["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert picker["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    (rule,) = route["spec"]["rules"]
    assert [backend["name"] for backend in rule["backendRefs"]] == [pool["metadata"]["name"]]
    (config,) = found["ConfigMap"]
    fleet = resolve(yaml.safe_load(config["data"]["fleet.yaml"]))
    assert (fleet.router.leases.report_host, fleet.router.leases.report_port) == ("node", 9003)
    port = pool["spec"]["targetPorts"][0]["number"]
    for engine in fleet.engines:
        assert engine.url is not None
        service = services[str(engine.url.host)]["spec"]
        assert (service["clusterIP"], engine.url.port, service["ports"][0]["port"]) == ("None", port, port)
        assert pool["spec"]["selector"]["matchLabels"].items() <= service["selector"].items()


@needs_helm
def test_the_manifests_are_those_of_the_chart() -> None:
    assert {path.name: path.read_text() for path in EPP_PLAIN.glob("*.yaml")} == plain_epp()


@needs_helm
@pytest.mark.parametrize(
    "over",
    [
        {"tls": {"existingSecret": "cert"}},
        {"reports": {"existingSecret": ""}, "networkPolicy": {"enabled": False}},
        {"route": {"enabled": False}, "failureMode": "FailClose", "image": {"pullSecrets": ["registry"]}},
        {"route": {"hostnames": ["llm.example.com"]}, "nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "a"}]},
    ],
    ids=["tls", "no reports", "no route", "placed"],
)
def test_kubernetes_takes_every_choice(over: dict[str, Any]) -> None:
    documents = objects(**over)
    for document in documents:
        kube.check(document)
    (deployment,) = by_kind(documents)["Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in deployment["spec"]["template"]["spec"]["volumes"]}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert ("tls" in mounted) == ("tls" in over)
    assert ("reports" in mounted) == ("env" in container) == ("reports" not in over)


@needs_helm
def test_with_tls_the_picker_knows_its_certificate() -> None:
    (config,) = by_kind(objects(tls={"existingSecret": "cert"}))["ConfigMap"]
    epp = yaml.safe_load(config["data"]["fleet.yaml"])["router"]["epp"]
    assert epp == {"certificate_file": "/etc/draftpick/tls/tls.crt", "key_file": "/etc/draftpick/tls/tls.key"}
