"""Loading the configuration: every problem on a line of its own, with path and suggestion."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from draftpick.engines.errors import ConfigError
from draftpick.router.config.router_config import ConfigProblems, DraftpickConfig, load_config

ENGINES = [{"name": "plain"}, {"name": "ngram", "drafter": {"method": "ngram", "num_speculative_tokens": 6}}]
GOOD = {"engines": ENGINES, "router": {"default_engine": "plain"}}


def problems(data: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigProblems) as caught:
        load_config(data)
    return caught.value.problems


def test_a_file_and_a_dict_give_the_same_configuration(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(
        "engines:\n"
        "  - {name: plain}\n"
        "  - {name: ngram, drafter: {method: ngram, num_speculative_tokens: 6}}\n"
        "router: {default_engine: plain}\n"
    )
    assert load_config(path) == load_config(str(path)) == load_config(GOOD)


def test_a_configuration_survives_a_round_trip() -> None:
    config = load_config({**GOOD, "router": {"default_engine": "ngram", "records": {"dir": "/somewhere"}}})
    assert load_config(config.model_dump(mode="json")) == config


def test_configuration_is_frozen() -> None:
    config = load_config(GOOD)
    with pytest.raises(ValidationError, match="frozen"):
        config.router.policy = "uniform"  # type: ignore[misc]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: is not readable: No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not readable"):
        load_config(tmp_path)


@pytest.mark.parametrize("text", ["engines: [", "a: b: c", "\tx: 1", "!!python/object/apply:os.getcwd []"])
def test_what_is_no_plain_yaml_is_refused_with_its_place(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not valid YAML") as caught:
        load_config(path)
    assert caught.value.field == str(path)
    assert "line 1" in str(caught.value)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_bytes(b"\xff\x00: 1")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(path)


@pytest.mark.parametrize("text", ["", "[]", "3", "just words"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not a mapping"):
        load_config(path)


def test_all_problems_are_listed_at_once_with_their_paths() -> None:
    data = {
        "target": {"name": ""},
        "engines": [{"name": "plain"}, {"name": "a", "drafter": {"method": "ngram", "num_speculative_tokens": 0}}],
        "router": {"max_attempts": 0},
    }
    found = problems(data)
    assert [line.split(": ")[0] for line in found] == [
        "target.name",
        "engines.1.drafter.num_speculative_tokens",
        "router.default_engine",
        "router.max_attempts",
    ]
    assert found[2] == "router.default_engine: is required and missing (add it)"


def test_the_text_of_the_error_holds_source_count_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text("engines: [{name: plain}]\n")
    with pytest.raises(ConfigProblems) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: 1 problem found\n  router: is required and missing (add it)"


@pytest.mark.parametrize(
    ("data", "path", "suggested"),
    [
        ({"enginess": []}, "enginess", "engines"),
        ({"target": {"nam": "x"}}, "target.nam", "name"),
        ({"engines": [{"name": "plain", "drafte": {}}]}, "engines.0.drafte", "drafter"),
        (
            {"engines": [*ENGINES, {"name": "x", "deployment": {"num_cpu": 1}}]},
            "engines.2.deployment.num_cpu",
            "num_cpus",
        ),
        (
            {"engines": [{"name": "plain", "kind": "mock", "mock": {"step": 1}}]},
            "engines.0.mock.step",
            "step_s",
        ),
        ({"router": {"default_engine": "plain", "polcy": "fixed"}}, "router.polcy", "policy"),
        (
            {"router": {"default_engine": "plain", "records": {"queue_sise": 1}}},
            "router.records.queue_sise",
            "queue_size",
        ),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_one_at_its_place(
    data: dict[str, Any], path: str, suggested: str
) -> None:
    (line,) = problems({**GOOD, **data})
    assert line.startswith(f"{path}: unknown field (did you mean {suggested!r}? allowed: ")


def test_a_field_like_no_other_is_refused_with_all_that_are_allowed() -> None:
    (line,) = problems({**GOOD, "target": {"zzz": 1}})
    assert line == "target.zzz: unknown field (allowed: name, source)"


def test_a_default_engine_that_is_none_is_refused_with_the_nearest_one() -> None:
    (line,) = problems({**GOOD, "router": {"default_engine": "plane"}})
    assert line.startswith("router.default_engine names 'plane', which is not an engine")
    assert "did you mean 'plain'? engines: plain, ngram" in line


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_attempts", 11),
        ("first_byte_timeout_s", 0),
        ("timeout_s", -1),
        ("max_body_bytes", 10),
        ("featurize_timeout_s", 0),
        ("policy", ""),
    ],
)
def test_values_out_of_range_are_refused_at_their_path(field: str, value: Any) -> None:
    (line,) = problems({**GOOD, "router": {"default_engine": "plain", field: value}})
    assert line.startswith(f"router.{field}: ")


def test_what_is_not_said_has_its_default() -> None:
    config = load_config(GOOD)
    assert isinstance(config, DraftpickConfig)
    assert config.router.policy == "fixed"
    assert config.router.records.dir is None
