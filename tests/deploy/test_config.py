"""Which configuration is meant, and that everything wrong with one is said before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from draftpick.deploy.config import FLEETS, policy_warning, resolve, with_engines, with_router, without_shared_text
from draftpick.engines.errors import ConfigError
from draftpick.router.config.router_config import ConfigProblems, DraftpickConfig
from tests.deploy.artefact import write_policy

PLAIN, NGRAM = {"name": "plain", "kind": "mock"}, {"name": "ngram", "kind": "mock"}
BASE: dict[str, Any] = {"target": {"name": "m"}, "engines": [PLAIN, NGRAM], "router": {"default_engine": "plain"}}


def fleet(policy: str = "fixed", **changes: Any) -> dict[str, Any]:
    return {**BASE, "router": {**BASE["router"], "policy": policy}, **changes}


def problems(source: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigProblems) as caught:
        resolve(source)
    return caught.value.problems


def refusal(source: str | Path | dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        resolve(source)
    return caught.value


# --- what is meant ---


def test_a_fleet_by_its_name() -> None:
    config = resolve("mock")
    assert config.arms == ("plain", "ngram", "suffix", "math")
    assert {e.kind for e in config.engines} == {"mock"}
    assert config.router.policy == "uniform"


def test_all_fleets_are_well_formed() -> None:
    shipped = [yaml.safe_load(path.read_text()) for path in FLEETS.glob("*.yaml")]
    assert len(shipped) >= 2
    assert all(DraftpickConfig.model_validate(content) for content in shipped)


@pytest.mark.parametrize("form", [str, Path])
@pytest.mark.parametrize("name", ["fleet.yaml", "fleet.yml"])
def test_a_yaml_file(tmp_path: Path, form: type, name: str) -> None:
    (tmp_path / name).write_text(yaml.safe_dump(BASE))
    assert resolve(form(tmp_path / name)) == resolve(BASE)


def test_a_configuration_survives_the_way_to_the_builder_and_back() -> None:
    remote = {"name": "remote", "url": "http://10.0.0.7:8000"}
    drafted = {"name": "drafted", "drafter": {"method": "ngram", "prompt_lookup_max": 4}, "kind": "mock"}
    records = {"default_engine": "plain", "records": {"dir": "runs/records"}}
    config = resolve({**BASE, "engines": [PLAIN, remote, drafted], "router": records})
    assert resolve(json.loads(json.dumps(config.model_dump(mode="json")))) == config


def test_an_unknown_fleet_gets_a_suggestion_and_the_names() -> None:
    error = refusal("mok")
    assert error.field == "config"
    assert str(error) == (
        "config: unknown fleet 'mok' (did you mean 'mock'? name a YAML file, or one of: embedded, mock, pool, seven)"
    )
    assert "did you mean" not in str(refusal("qwerty"))


# --- files ---


def test_a_missing_file(tmp_path: Path) -> None:
    error = refusal(str(tmp_path / "none.yaml"))
    assert error.field == str(tmp_path / "none.yaml")
    assert "is not readable: No such file" in error.problem
    assert error.fix


@pytest.mark.parametrize(
    ("content", "problem"),
    [("a: [1,", "is not valid YAML"), ("- 1\n", "is not a mapping"), ("", "is not a mapping")],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "fleet.yaml").write_text(content)
    error = refusal(str(tmp_path / "fleet.yaml"))
    assert error.field == str(tmp_path / "fleet.yaml")
    assert problem in error.problem


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_bytes(b"target: \xff\n")
    refusal(str(tmp_path / "fleet.yaml"))


def test_the_file_is_named_above_its_problems(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump({**BASE, "rooter": 1}))
    first, second = str(refusal(str(tmp_path / "fleet.yaml"))).splitlines()
    assert first == f"{tmp_path / 'fleet.yaml'}: 1 problem found"
    assert second.startswith("  rooter: unknown field")


# --- fields ---


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rooter": {}}, "rooter: unknown field (did you mean 'router'? allowed: "),
        ({"engines": [{**PLAIN, "draftr": None}]}, "engines.0.draftr: unknown field (did you mean 'drafter'? "),
        ({"engines": [{**PLAIN, "mock": {"step": 1}}]}, "engines.0.mock.step: unknown field (did you mean 'step_s'? "),
        ({"router": {"default_engine": "plain", "records": {"dri": "x"}}}, "router.records.dri: unknown field ("),
        ({"router": {}}, "router.default_engine: is required and missing"),
        ({"engines": []}, "engines: at least one engine is needed"),
        ({"engines": [PLAIN, PLAIN]}, "engines: duplicate engine names: plain"),
        ({"engines": [{**PLAIN, "name": "No!"}]}, "engines.0.name: String should match pattern"),
        ({"engines": [{**PLAIN, "kind": "vlm"}]}, "engines.0.kind: Input should be 'vllm', 'mock' or 'url'"),
        ({"engines": [{**PLAIN, "url": "http://a"}]}, "engines.0: an engine of kind `url` needs `url`"),
        ({"engines": [{"name": "plain", "kind": "url"}]}, "engines.0: an engine of kind `url` needs `url`"),
        ({"engines": [{"name": "plain", "mock": {}}]}, "engines.0: `mock` needs `kind: mock`"),
        ({"engines": [{**PLAIN, "mock": {"acceptance_length": 2}}]}, "engines.0.mock: acceptance_length: 2.0 exceeds"),
        ({"engines": [{**PLAIN, "drafter": {"method": "eagle"}}]}, "engines.0.drafter: method 'eagle' needs a `model`"),
        ({"router": {"default_engine": "plane"}}, "names 'plane', which is not an engine (did you mean 'plain'? "),
        ({"router": {"default_engine": "plain", "max_attempts": 0}}, "router.max_attempts: Input should be greater"),
        ({"target": {"name": ""}}, "target.name: String should have at least 1 character"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_a_cure(changes: dict[str, Any], problem: str) -> None:
    (line,) = problems({**BASE, **changes})
    assert problem in line


def test_all_problems_are_told_at_once() -> None:
    found = problems({"engines": [{**PLAIN, "kind": "x"}, {**NGRAM, "extra": 1}], "target": {"nam": "m"}})
    assert [line.split(":")[0] for line in found] == ["target.nam", "engines.0.kind", "engines.1.extra", "router"]


# --- models ---


def model(path: Path, **shape: int) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(shape))
    return str(path)


def speculative(method: str, drafter: str, target: str) -> dict[str, Any]:
    drafted = {"name": "drafted", "drafter": {"method": method, "model": drafter}}
    return {**BASE, "target": {"name": "m", "source": target}, "engines": [{"name": "plain"}, drafted]}


def test_a_drafter_that_fits(tmp_path: Path) -> None:
    target, drafter = model(tmp_path / "target", vocab_size=9), model(tmp_path / "drafter", vocab_size=9)
    assert resolve(speculative("draft_model", drafter, target)).arms == ("plain", "drafted")


@pytest.mark.parametrize(("method", "key"), [("draft_model", "vocab_size"), ("eagle3", "hidden_size")])
def test_a_drafter_that_does_not_fit(tmp_path: Path, method: str, key: str) -> None:
    target, drafter = model(tmp_path / "target", **{key: 9}), model(tmp_path / "drafter", **{key: 8})
    error = refusal(speculative(method, drafter, target))
    assert error.field == "engines.1.drafter.model"
    assert error.problem == f"drafter of engine 'drafted' has {key} 8, the target has 9"


def test_models_that_are_missing(tmp_path: Path) -> None:
    target, none = model(tmp_path / "target", vocab_size=9), str(tmp_path / "none")
    assert refusal(speculative("draft_model", none, target)).field == "engines.1.drafter.model"
    assert refusal(speculative("draft_model", target, none)).field == "target.source"
    assert refusal(speculative("draft_model", "embedded:none", target)).field == "engines.1.drafter.model"


# --- fewer engines ---


def test_a_smaller_fleet_keeps_order_and_router(tmp_path: Path) -> None:
    policy = str(write_policy(tmp_path / "policy", ["plain", "ngram", "suffix", "math"]))
    smaller = with_engines(with_router(resolve("mock"), policy=policy), ["math", "plain"])
    assert smaller.arms == ("plain", "math")
    assert (smaller.router.policy, policy_warning(smaller)) == (policy, None)


def test_a_smaller_fleet_of_an_unknown_engine() -> None:
    with pytest.raises(ConfigError, match="did you mean 'suffix'"):
        with_engines(resolve("mock"), ["plain", "sufix"])


def test_a_smaller_fleet_without_the_default_engine() -> None:
    with pytest.raises(ConfigProblems, match="default_engine"):
        with_engines(resolve("mock"), ["math"])


# --- no text kept over requests ---


def test_drafters_keep_no_text_of_one_request_for_the_next() -> None:
    drafters: list[dict[str, Any]] = [
        {"method": "suffix", "suffix_decoding_max_tree_depth": 8},
        {"method": "trigram", "shared": True},
        {"method": "hybrid", "trigram": {"shared": True, "iterations": 9}},
        {"method": "hybrid"},
        {"method": "ngram", "prompt_lookup_max": 4},
    ]
    engines = [{"name": f"e{i}", "drafter": drafter} for i, drafter in enumerate(drafters)]
    config = resolve({**BASE, "target": {"name": "m", "source": "a/b"}, "engines": [{"name": "plain"}, *engines]})
    told = [e.drafter.model_extra for e in without_shared_text(config).engines if e.drafter]
    assert told == [
        {"suffix_decoding_max_tree_depth": 8, "suffix_decoding_max_cached_requests": 0},
        {"shared": False},
        {"trigram": {"shared": False, "iterations": 9}},
        {},
        {"prompt_lookup_max": 4},
    ]


# --- policies ---


@pytest.mark.parametrize("policy", ["fixed", "uniform"])
def test_policies_without_an_artefact(policy: str) -> None:
    config = resolve(fleet(policy))
    assert config.router.policy == policy
    assert policy_warning(config) is None


def test_a_policy_for_these_arms_in_any_order(tmp_path: Path) -> None:
    config = resolve(fleet(str(write_policy(tmp_path / "policy", ["ngram", "plain"]))))
    assert policy_warning(config) is None


def test_a_policy_for_other_arms_is_a_warning(tmp_path: Path) -> None:
    config = resolve(fleet(str(write_policy(tmp_path / "policy", ["plain", "math"]))))
    warning = policy_warning(config) or ""
    assert "was made for the engines ['plain', 'math'], this fleet has ['plain', 'ngram']" in warning


def refused_policy(path: Path) -> str:
    error = refusal(fleet(str(path)))
    assert error.field == "router.policy"
    assert "`fixed`, `uniform`, `embedded`, the folder of a trained policy, or of a registry" in error.fix
    return error.problem


def test_a_policy_that_is_missing(tmp_path: Path) -> None:
    assert "is not a readable policy" in refused_policy(tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"schema": 3}, "has schema 3, this version reads 2 and 1"),
        ({"arms": None}, "field 'arms' is missing or not a list"),
        ({"kind": "mpl"}, "unknown kind of policy 'mpl' (did you mean 'mlp'? "),
        ({"arms": ["plain"]}, "array w3 has shape (4, 2), expected (4, 1)"),
        ({"arrays_sha256": "0"}, "its sha256 differs"),
    ],
)
def test_a_policy_with_a_wrong_manifest(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    manifest = write_policy(tmp_path / "policy") / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))
    assert problem in refused_policy(tmp_path / "policy")


def test_a_policy_with_a_damaged_file(tmp_path: Path) -> None:
    path = write_policy(tmp_path / "policy")
    (path / "arrays.safetensors").write_bytes(b"short")
    assert "its sha256 differs" in refused_policy(path)
    (path / "manifest.json").write_text("{")
    assert "is not a readable policy" in refused_policy(path)


@pytest.mark.parametrize("name", ["embedded", "pool"])
def test_the_shipped_policy_serves_the_pools_of_fleets_that_ship(name: str) -> None:
    config = resolve(name)
    assert any(engine.is_pool for engine in config.engines)
    assert policy_warning(config) is None
