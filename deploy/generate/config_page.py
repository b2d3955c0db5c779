"""Generates docs/configuration.md from the models: `python -m draftpick.deploy.generate.config_page`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftpick.deploy.generate.markdown import slug
from draftpick.engines.drafter_options import DRAFTERS
from draftpick.router.config.former_fields import FLEET, LIVE, TRAFFIC
from draftpick.router.config.router_config import DraftpickConfig, LiveConfig
from draftpick.router.http.auth import Key
from draftpick.router.http.request_headers import REQUEST_HEADERS

Schema = Mapping[str, Any]

FILE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
_HEAD = """\
# Configuration

Every field of a fleet, the YAML file of `draftpick serve`, `draftpick route`, Ray Serve and the Helm chart. Generated
from the code by `make manifests`. `draftpick check-config FILE` reports the errors of a file and starts nothing.
Unknown fields are rejected, except vLLM's own, which are passed to vLLM unchanged: all of `engine_kwargs`, and further
fields of `drafter`.

In a path, `[]` means each item of a list. Fields ending in `_s` are in seconds, in `_bytes` in bytes. Fields without
"required" are optional.

```yaml
target: {name: my-model, source: meta-llama/Llama-3.1-8B-Instruct}
engines:
  - {name: plain, deployment: {accelerator: gpu}}
  - {name: suffix, deployment: {accelerator: gpu}, drafter: {method: suffix, num_speculative_tokens: 8}}
router: {policy: uniform, default_engine: plain}
```

"""
_EXAMPLES = {
    "target": "target: {name: my-model, source: /models/my-model}",
    "engines[]": """\
engine_kwargs: {max_model_len: 16384}                # of every engine
engines:
  - {name: plain, deployment: {accelerator: gpu}}
  - {name: elsewhere, url: "http://10.0.0.7:8000"}   # external: any `vllm serve`
router: {default_engine: plain}""",
    "engines[].drafter": """\
engines:
  - {name: plain}
  - name: eagle3
    drafter:
      method: eagle3
      model: yuhuili/EAGLE3-LLaMA3.1-Instruct-8B
      num_speculative_tokens: 3
      draft_tensor_parallel_size: 1                  # vLLM's own
router: {default_engine: plain}""",
    "engines[].drafters[]": """\
engines:
  - name: pool                                       # its arms: pool/none, pool/suffix, pool/math
    drafters:
      - {name: suffix, method: suffix, num_speculative_tokens: 8}
      - {name: math, method: eagle3, model: "embedded:math", num_speculative_tokens: 3}
router: {default_engine: pool}""",
    "engines[].deployment": """\
engines:
  - name: plain
    engine_kwargs: {tensor_parallel_size: 2}         # GPUs of one replica
    deployment: {accelerator: gpu, num_replicas: 2, num_cpus: 2, profile: auto}
router: {default_engine: plain}""",
    "engines[].deployment.autoscaling": """\
engines:
  - name: plain
    deployment: {accelerator: gpu, autoscaling: {min_replicas: 1, max_replicas: 4, target_ongoing_requests: 32}}
router: {default_engine: plain, autoscaling: {max_accelerators: 6}}""",
    "engines[].mock": """\
engines:
  - {name: plain, kind: mock, mock: {step_s: 0.004}}
  - {name: fast, kind: mock, mock: {step_s: 0.005, num_speculative_tokens: 6, acceptance_length: 2.5}}
router: {default_engine: plain}""",
    "router": """\
router:
  policy: registry               # a folder of policies: draftpick policies add runs/policy --registry registry
  default_engine: plain
  exploration: {rate: 0.03}
  records: {dir: records}""",
    "router.load": "router: {load: {objective: latency}}",
    "router.autoscaling": "router: {autoscaling: {max_accelerators: 8}}",
    "router.keys": "router: {keys: {file: keys.yaml}}",
    "router.admission": "router: {admission: {max_in_flight: 512, max_queued: 256, queue_timeout_s: 10}}",
    "router.records": "router: {records: {dir: records, segment_bytes: 16777216, keep_segments: 256}}",
    "router.logs": "router: {logs: {format: json, access_log: true}}",
    "router.tracing": 'router: {tracing: {sample_rate: 0.01, endpoint: "http://collector:4318"}}',
    "keys": """\
- name: search-team
  sha256: fb16b25f1a2b6cf9350fa41fca051fc9233909c4598f2af092ec2a9b25899aeb
  requests_per_minute: 600
- name: operator
  sha256: b018e115ca5e11b653de5e0aa3e7f573c4a67ab90d2b7135a2f225deff00f73c
  scopes: [chat, admin]
  priority: high""",
    "user_config": """\
router:
  deployment_options:
    user_config: {policy: uniform, exploration: {rate: 0.1}}""",
}
_KEYS = (
    "The content of `router.keys.file`: a list, to which `draftpick keys new` appends. Routers reload it on a change. "
    "The keys below are examples."
)
_LIVE = "{} `draftpick route` has none: it follows the registry that `router.policy` names."
_FORMER = (
    "The fields below were renamed. This release accepts their former names, too, and warns of each (`FutureWarning`, "
    "`draftpick check-config`, `draftpick doctor`); the next release does not. A field under both names is wrong.\n\n"
)
_TYPES = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false", "object": "map"}
_FORMATS = {"path": "path", "uri": "URL", "date-time": "time"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_UNITS = {2**20: "MiB", 2**10: "KiB"}  # largest first


@dataclass(frozen=True, slots=True)
class Section:
    """A model of the configuration: heading, schema, prefix of its fields' paths, and example."""

    heading: str
    schema: Schema
    begin: str = ""
    example: str | None = None


def text() -> str:
    """The page."""
    sections = [*_fleet(), *_apart()]
    anchors = {one.schema.get("title", ""): slug(one.heading.strip("# ")) for one in reversed(sections)}
    return _HEAD + "\n".join(_shown(section, anchors) for section in sections) + _request_headers()


def _request_headers() -> str:
    rows = (f"| `{header.name}` | {header.description} |" for header in REQUEST_HEADERS)
    return "\n".join(["\n## Request headers\n", "| header | what it does |", "|---|---|", *rows]) + "\n"


def _fleet() -> Iterator[Section]:
    """The sections of a fleet; each precedes those of its fields."""
    schema = DraftpickConfig.model_json_schema()
    yield Section("## The file", schema)
    yield from _below(schema, "", schema["$defs"])


def _below(schema: Schema, begin: str, models: Schema) -> Iterator[Section]:
    for name, field in schema["properties"].items():
        model, many = _model(_given(field)), _given(field).get("type") == "array"
        if model is None:
            continue
        path = f"{begin}{name}{'[]' if many else ''}"
        heading = f"{'###' if begin else '##'} `{path}`"
        yield Section(heading, models[model], f"{path}.", _EXAMPLES.get(path))
        if path == "engines[].drafter":
            for method, spec in DRAFTERS.items():
                if (options := spec.options or spec.added_options) is not None:
                    section = options.model_json_schema()
                    yield Section(f"{heading} of the method `{method}`", section, f"{path}.")
        yield from _below(models[model], f"{path}.", models)


def _apart() -> Iterator[Section]:
    """Sections outside the fleet's file."""
    key, live = Key.model_json_schema(), LiveConfig.model_json_schema()
    yield Section("## The file of keys", {**key, "description": _KEYS}, "[].", _EXAMPLES["keys"])
    about = _LIVE.format(live["description"])
    yield Section("## While it runs: `user_config`", {**live, "description": about}, "", _EXAMPLES["user_config"])
    yield Section("### `exploration` of `user_config`", live["$defs"]["LiveExplorationConfig"], "exploration.")
    yield Section("## Former names", {"description": _FORMER + _former_names()})


def _former_names() -> str:
    """A table of the former names of fields."""
    tables = {"fleet": FLEET, "`user_config`": LIVE, "traffic": TRAFFIC}
    rows = [f"| {whose} | `{old}` | `{new}` |" for whose, table in tables.items() for old, new in table.items()]
    return "\n".join(["| in | former name | name |", "|---|---|---|", *rows])


def _shown(section: Section, anchors: Mapping[str, str]) -> str:
    if "properties" not in section.schema:
        return f"{section.heading}\n\n{section.schema['description']}\n"
    required = section.schema.get("required", ())
    rows = [
        _row(f"{section.begin}{name}", field, name in required, anchors)
        for name, field in section.schema["properties"].items()
    ]
    table = "\n".join(["| field | type | default | bounds | what it is |", "|---|---|---|---|---|", *rows])
    example = f"```yaml\n{section.example}\n```\n\n" if section.example else ""
    return f"{section.heading}\n\n{section.schema['description']}\n\n{example}{table}\n"


def _row(path: str, field: Schema, required: bool, anchors: Mapping[str, str]) -> str:
    given = _given(field)
    default = _default(path, field, given, required)
    cells = [f"`{path}`", _type(given, anchors), default, _bounds(given), field["description"]]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _given(field: Schema) -> Schema:
    """The non-null alternative of a field's schema."""
    return next((one for one in field.get("anyOf", ()) if one.get("type") != "null"), field)


def _model(given: Schema) -> str | None:
    """The model of a field, or of its items."""
    reference: str | None = given.get("items", given).get("$ref")
    return reference and reference.rsplit("/", 1)[-1]


def _type(given: Schema, anchors: Mapping[str, str]) -> str:
    if given.get("type") == "array":
        return f"list of {_type(given['items'], anchors)}"
    if (model := _model(given)) is not None:
        return f"[map](#{anchors[model]})"
    if "enum" in given:
        *most, last = (f"`{one}`" for one in given["enum"])
        return f"{', '.join(most)} or {last}"
    return _FORMATS.get(given.get("format", "")) or _TYPES[given["type"]]


def _default(path: str, field: Schema, given: Schema, required: bool) -> str:
    if required:
        return "required"
    default = field.get("default", {} if given.get("type") == "object" else None)
    if default is None:
        return ""
    if isinstance(default, list):
        return ", ".join(f"`{one}`" for one in default)
    shown = default if isinstance(default, str) else json.dumps(default).removesuffix(".0")
    return f"`{shown}`" + (_in_units(default) if path.endswith("_bytes") else "")


def _in_units(size: int) -> str:
    return next((f" ({size // unit} {name})" for unit, name in _UNITS.items() if size % unit == 0), "")


def _bounds(given: Schema) -> str:
    found = [f"{sign} {given[name]}" for name, sign in _BOUNDS.items() if name in given]
    return ", ".join(found) or (f"`{given['pattern']}`" if "pattern" in given else "")


def main() -> None:
    FILE.write_text(text())
    print(FILE)


if __name__ == "__main__":
    main()
