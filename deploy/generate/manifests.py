"""Generates files below `deploy/`: `python -m draftpick.deploy.generate.manifests`.

The charts' schemas come from the configuration models, and the plain Kubernetes manifests from the charts.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import yaml

from draftpick.router.config.former_fields import FLEET
from draftpick.router.config.router_config import DraftpickConfig

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CHART = DEPLOY / "helm" / "draftpick"
EXAMPLES = DEPLOY / "helm" / "examples"
SCHEMA = CHART / "values.schema.json"
PLAIN = DEPLOY / "kubernetes"
EPP_CHART, EPP_EXAMPLES, EPP_PLAIN = DEPLOY / "helm" / "draftpick-epp", DEPLOY / "helm" / "examples-epp", DEPLOY / "epp"
EPP_SCHEMA = EPP_CHART / "values.schema.json"
"""The same of the endpoint picker."""

_HEADS = {
    "rayservice.yaml": """\
# For clusters without Helm: the example llama-8b of deploy/helm, rendered by `make manifests`.
# KubeRay (operator 1.5 or newer) runs it. Set the image, the storage class and what your GPU nodes need, then:
#
#   kubectl create secret generic draftpick --from-file=hf-token=/dev/stdin       # paste, Ctrl-D
#   kubectl apply -f deploy/kubernetes
#   kubectl wait rayservice/draftpick --for=condition=Ready --timeout=30m
#
# The fleet is that of deploy/serve/cluster.yaml, where each line is explained. The running cluster applies changes of
# serveConfigV2; any other change starts a second cluster, which needs as many GPUs again until it serves.
""",
    "networkpolicy.yaml": """\
# Network access to the pods of rayservice.yaml. Generated from deploy/helm by `make manifests`.
""",
    "retraining.yaml": """\
# Retraining on the records of rayservice.yaml. Generated from deploy/helm by `make manifests`.
""",
}
_EPP_HEADS = {
    "picker": """\
# The endpoint picker for clusters without Helm: the example two-engines of deploy/helm/examples-epp, rendered by
# `make manifests`. Set the image and the engines, then:
#
#   kubectl create secret generic report-secret --from-file=report-secret      # openssl rand -hex 32 > report-secret
#   kubectl apply -f deploy/epp
""",
    "engines": "# Services of the engines. Generated from deploy/helm by `make manifests`.\n",
    "pool": "# The InferencePool, and the route to it. Generated from deploy/helm by `make manifests`.\n",
    "networkpolicy": "# Network access to the picker. Generated from deploy/helm by `make manifests`.\n",
}
_TEMPLATES = {
    "rayservice.yaml": ("serviceaccount", "storage", "rayservice", "poddisruptionbudget"),
    "networkpolicy.yaml": ("networkpolicy",),
    "retraining.yaml": ("retraining",),
}


def schema(text: str) -> str:
    """The chart's schema of values, with the current configuration as the schema of the fleet."""
    whole, fleet = json.loads(text), DraftpickConfig.model_json_schema()
    for old, new in FLEET.items():
        _add_former(fleet, old, new)
    whole["$defs"] = fleet.pop("$defs")
    whole["properties"]["fleet"] = fleet
    return json.dumps(whole, indent=2) + "\n"


def _add_former(fleet: dict[str, Any], old: str, new: str) -> None:
    """Let the schema of a fleet accept the field `new` under its former path as well."""
    holder, name = _holder(fleet, old)
    section, renamed = _holder(fleet, new)
    former = {name: text for name, text in section["properties"][renamed].items() if name != "default"}
    holder["properties"][name] = {**former, "deprecated": True, "description": f"the former name of `{new}`"}


def _holder(fleet: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The schema that contains the last field of a path, and the field's name."""
    *above, name = path.split(".")
    schema = fleet
    for part in above:
        schema = fleet["$defs"][schema["properties"][part]["$ref"].rpartition("/")[2]]
    return schema, name


def example(name: str, folder: Path = EXAMPLES) -> dict[str, Any]:
    """The values of an example."""
    values: dict[str, Any] = yaml.safe_load((folder / f"{name}.yaml").read_text())
    return values


def render(values: dict[str, Any], name: str = "draftpick", path: Path = CHART) -> dict[str, str]:
    """Render a chart with Helm, by template. Raises if Helm rejects the values, or is not installed."""
    helm: Any = importlib.import_module("helm_python")
    with helm.Chart.load(path) as chart:
        chart.validate_schema(values)
        found = chart.render(values, name=name, namespace="llm")
    return {Path(path).stem: text for path, text in found.items()}


def plain() -> dict[str, str]:
    """The manifests for clusters without Helm, by file."""
    made = render(example("llama-8b"))
    return {name: head + "---\n".join(_tidy(made[t]) for t in _TEMPLATES[name]) for name, head in _HEADS.items()}


def plain_epp() -> dict[str, str]:
    """The manifests of the endpoint picker for clusters without Helm, by file."""
    made = render(example("two-engines", EPP_EXAMPLES), "draftpick-epp", EPP_CHART)
    return {f"{name}.yaml": head + _tidy(made[name]) for name, head in _EPP_HEADS.items()}


def _tidy(text: str) -> str:
    return "".join(f"{line}\n" for line in text.splitlines() if line.strip())


def main() -> None:
    for path in (SCHEMA, EPP_SCHEMA):
        path.write_text(schema(path.read_text()))
    for folder, files in ((PLAIN, plain()), (EPP_PLAIN, plain_epp())):
        for name, text in files.items():
            (folder / name).write_text(text)


if __name__ == "__main__":
    main()
