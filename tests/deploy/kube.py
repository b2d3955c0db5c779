"""Whether Kubernetes would take an object: by its own schemas, strictly, and by what we use of others' types.

The schemas of Kubernetes come with the package `kubernetes-validate`. KubeRay, the Prometheus operator and the Gateway
API ship none for Python: the fields here are those of `ray.io/v1` since KubeRay 1.5, of `gateway.networking.k8s.io/v1`
since 1.2 and of `inference.networking.k8s.io/v1`; pods and services in them are Kubernetes' own.
"""

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema_rs import Draft202012Validator, Registry

VERSION = "v1.34.0"

_CORE = "urn:kubernetes#/$defs/io.k8s.api.core.v1."
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_COUNT = {"type": "integer", "minimum": 0}


def _strict(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


def _core(kind: str) -> dict[str, str]:
    return {"$ref": _CORE + kind}


def _object(spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"$ref": "urn:kubernetes#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
    return _strict(["apiVersion", "kind", "metadata", "spec"], apiVersion={}, kind={}, metadata=metadata, spec=spec)


_GROUP = {"rayStartParams": _TEXTS, "template": _core("PodTemplateSpec")}
_AUTOSCALER = _strict(
    [],
    idleTimeoutSeconds=_COUNT,
    securityContext=_core("SecurityContext"),
    volumeMounts={"type": "array", "items": _core("VolumeMount")},
)
_FAULT_TOLERANCE = _strict(
    ["redisAddress"],
    redisAddress={"type": "string"},
    redisPassword=_strict([], valueFrom=_core("EnvVarSource")),
)
_CLUSTER = _strict(
    ["headGroupSpec"],
    rayVersion={"type": "string"},
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=_AUTOSCALER,
    gcsFaultToleranceOptions=_FAULT_TOLERANCE,
    headGroupSpec=_strict(["rayStartParams", "template"], **_GROUP),
    workerGroupSpecs={
        "type": "array",
        "items": _strict(
            ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
            groupName={"type": "string"},
            replicas=_COUNT,
            minReplicas=_COUNT,
            maxReplicas=_COUNT,
            **_GROUP,
        ),
    },
)
_RAY_SERVICE = _strict(
    ["serveConfigV2", "rayClusterConfig"],
    serveConfigV2={"type": "string"},
    serveService=_core("Service"),
    upgradeStrategy=_strict(["type"], type={"enum": ["NewCluster", "None"]}),
    rayClusterDeletionDelaySeconds=_COUNT,
    rayClusterConfig=_CLUSTER,
)
_SERVICE_MONITOR = _strict(
    ["selector", "endpoints"],
    selector=_strict(["matchLabels"], matchLabels=_TEXTS),
    endpoints={
        "type": "array",
        "items": _strict(
            ["port"],
            port={"type": "string"},
            path={"type": "string"},
            interval={"type": "string"},
            authorization=_strict(["credentials"], credentials=_core("SecretKeySelector")),
        ),
    },
)
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_NAME = {"type": "string", "minLength": 1, "maxLength": 253}
_GROUP_NAME = {"type": "string", "pattern": r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"}
_INFERENCE_POOL = _strict(
    ["selector", "targetPorts", "endpointPickerRef"],
    selector=_strict(["matchLabels"], matchLabels=_TEXTS),
    targetPorts={"type": "array", "minItems": 1, "maxItems": 8, "items": _strict(["number"], number=_PORT)},
    endpointPickerRef=_strict(
        ["name", "port"],  # `port`, of a Service
        group=_GROUP_NAME,
        kind=_NAME,
        name=_NAME,
        port=_strict(["number"], number=_PORT),
        failureMode={"enum": ["FailOpen", "FailClose"]},
    ),
)
_REFERENCE = {"group": _GROUP_NAME, "kind": _NAME, "name": _NAME, "namespace": _NAME, "port": _PORT}
_DURATION = {"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
_HTTP_ROUTE = _strict(
    [],
    parentRefs={"type": "array", "maxItems": 32, "items": _strict(["name"], **_REFERENCE, sectionName=_NAME)},
    hostnames={"type": "array", "maxItems": 16, "items": _NAME},
    rules={
        "type": "array",
        "minItems": 1,
        "maxItems": 16,
        "items": _strict(
            [],
            matches={
                "type": "array",
                "items": _strict(
                    [],
                    path=_strict(
                        [],
                        type={"enum": ["Exact", "PathPrefix", "RegularExpression"]},
                        value={"type": "string", "maxLength": 1024},
                    ),
                ),
            },
            backendRefs={
                "type": "array",
                "maxItems": 16,
                "items": _strict(["name"], **_REFERENCE, weight={"type": "integer", "minimum": 0}),
            },
            timeouts=_strict([], request=_DURATION, backendRequest=_DURATION),
        ),
    },
)
_OTHERS = {
    ("inference.networking.k8s.io/v1", "InferencePool"): _object(_INFERENCE_POOL),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): _object(_HTTP_ROUTE),
    ("ray.io/v1", "RayService"): _object(_RAY_SERVICE),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): _object(_SERVICE_MONITOR),
}


def serve_config(ray_service: dict[str, Any]) -> dict[str, Any]:
    """Serve's configuration in a RayService."""
    config: dict[str, Any] = yaml.safe_load(ray_service["spec"]["serveConfigV2"])
    return config


def ray_service_args(ray_service: dict[str, Any]) -> dict[str, Any]:
    """The fleet in a RayService."""
    (application,) = serve_config(ray_service)["applications"]
    found: dict[str, Any] = application["args"]
    return found


def check(document: dict[str, Any]) -> None:
    """Fail with the path of each field that Kubernetes would refuse."""
    kind = document["apiVersion"], document["kind"]
    found = problems(_validator(*kind), document)
    assert not found, f"{kind}: {found}"


def problems(validator: Draft202012Validator, document: dict[str, Any]) -> dict[str, str]:
    """What is wrong with a document, by the path of the field."""
    found = validator.iter_errors(document)
    return {".".join(map(str, error.instance_path)): error.message[:300] for error in found}


@cache
def _validator(api_version: str, kind: str) -> Draft202012Validator:
    definitions = _definitions()
    schema = _OTHERS.get((api_version, kind))
    if schema is None:
        group, _, version = api_version.rpartition("/")
        wanted = {"group": group, "version": version, "kind": kind}
        (name,) = [
            name
            for name, one in definitions["$defs"].items()
            if wanted in one.get("x-kubernetes-group-version-kind", ())
        ]
        schema = {"$ref": f"urn:kubernetes#/$defs/{name}"}
    return Draft202012Validator(schema, registry=Registry([("urn:kubernetes", definitions)]))


@cache
def _definitions() -> dict[str, Any]:
    package = importlib.util.find_spec("kubernetes_validate")  # for its files: an import would need more packages
    if package is None or package.origin is None:
        pytest.skip("kubernetes-validate, which has the schemas, is not installed")
    folder = Path(package.origin).parent / "kubernetes-json-schema" / f"{VERSION}-local-strict"
    definitions: dict[str, Any] = json.loads((folder / "_definitions.json").read_text())
    return definitions
