"""Former names of fields: every row of the table is accepted, warns, and cannot stand beside its new name."""

import json
import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema_rs import Draft202012Validator

from draftpick.deploy.generate.manifests import SCHEMA
from draftpick.policy_training.simulator.traffic import TrafficSpec
from draftpick.router.config.former_fields import FLEET, LIVE, TRAFFIC, FormerField, collected, rename_former
from draftpick.router.config.router_config import ConfigProblems, DraftpickConfig, LiveConfig, load_config

ROOT = Path(__file__).parents[3]
GOOD: dict[str, Any] = {
    "engines": [{"name": "plain"}, {"name": "ngram", "drafter": {"method": "ngram"}}],
    "router": {"default_engine": "plain"},
}
SECTIONS = {"router.prefixes": "enabled", "router.scaling": "interval_s", "router.limits": "max_queued"}
rows = pytest.mark.parametrize(("old", "new"), FLEET.items())


def value_of(data: Any, path: str) -> Any:
    for part in path.split("."):
        data = data[part] if isinstance(data, dict) else getattr(data, part)
    return data


def with_value(data: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`data` with `value` at `path`, beside all else."""
    result = deepcopy(dict(data))
    *above, name = path.split(".")
    holder = result
    for part in above:
        holder = holder.setdefault(part, {})
    holder[name] = value
    return result


def other_value(new: str) -> Any:
    """A valid value of a field that is not its default."""
    if new in (FLEET[section] for section in SECTIONS):
        return {}
    usual = value_of(load_config(GOOD), new)
    if isinstance(usual, bool):
        return not usual
    if isinstance(usual, int):
        return usual * 2
    if new.endswith(".rate"):
        return 0.25
    return {None: 3, 0.0: 0.25}.get(usual, usual / 2 if usual else 0) if not new.endswith("engine") else "ngram"


@rows
def test_a_former_field_of_a_fleet_counts_as_the_new_one_and_warns_once(old: str, new: str) -> None:
    value = other_value(new)
    with collected() as lines:
        config = load_config(with_value(GOOD, old, value))
    assert config == load_config(with_value(GOOD, new, value))
    assert lines.count(f"{old} is now called {new}") == 1
    assert all(line.startswith(old.rpartition(".")[0]) for line in lines)
    if value != {}:
        assert value_of(config, new) == value


@rows
def test_a_field_under_both_names_is_refused_with_both(old: str, new: str) -> None:
    value = other_value(new)
    both = with_value(with_value(GOOD, new, value), old, value)
    with collected(), pytest.raises(ConfigProblems) as caught:
        load_config(both)
    named = [(old, new), *((section, FLEET[section]) for section in SECTIONS if old.startswith(section))]
    assert any(all(name in str(caught.value) for name in pair) for pair in named)


@rows
def test_the_chart_accepts_a_former_field(old: str, new: str) -> None:
    schema = json.loads(SCHEMA.read_text())
    fleet = {**schema["properties"]["fleet"], "$defs": schema["$defs"]}
    assert Draft202012Validator(fleet).is_valid(with_value(GOOD, old, other_value(new)))


@rows
def test_the_present_schema_does_not_know_a_former_field(old: str, new: str) -> None:
    assert not Draft202012Validator(DraftpickConfig.model_json_schema()).is_valid(
        with_value(GOOD, old, other_value(new))
    )


def test_a_section_under_its_former_name_keeps_what_was_not_renamed() -> None:
    given = {**GOOD, "router": {"default_engine": "plain", "prefixes": {"enabled": False, "most_bytes": 2048}}}
    with collected() as lines:
        config = load_config(given)
    assert (config.router.prefix_cache.enabled, config.router.prefix_cache.max_bytes) == (False, 2048)
    assert len(lines) == 2
    assert given["router"]["prefixes"] == {"enabled": False, "most_bytes": 2048}


def test_a_field_of_a_renamed_section_under_both_names_is_refused() -> None:
    given = with_value(GOOD, "router.scaling", {"budget": 4, "max_accelerators": 4})
    with collected(), pytest.raises(ConfigProblems, match=r"router\.scaling\.budget and router\.autoscaling\.max_acc"):
        load_config(given)


def test_an_unknown_field_of_a_former_section_is_refused_where_it_is_now() -> None:
    with collected(), pytest.raises(ConfigProblems, match=r"router\.admission\.max_qeued: .*did you mean 'max_queued'"):
        load_config(with_value(GOOD, "router.limits.max_qeued", 3))


def test_a_former_field_under_an_invalid_section_is_rejected() -> None:
    given = with_value(with_value(GOOD, "router.explore", 0.1), "router.exploration", 3)
    with collected(), pytest.raises(ConfigProblems, match=r"router\.explore is now called router\.exploration\.rate"):
        load_config(given)


def test_present_names_warn_of_nothing() -> None:
    load_config(with_value(GOOD, "router.exploration.rate", 0.1))


def test_the_warning_is_one_for_the_future() -> None:
    with pytest.warns(FormerField, match=r"router\.explore is now called router\.exploration\.rate"):
        load_config(with_value(GOOD, "router.explore", 0.1))
    assert issubclass(FormerField, FutureWarning)


@pytest.mark.parametrize("old", LIVE)
def test_a_former_field_of_user_config_counts_as_the_new_one(old: str) -> None:
    value = {"explore": 0.5, "limits": {"max_in_flight": 7}}[old]
    with pytest.warns(FormerField, match=f"{old} is now called"):
        found = LiveConfig.model_validate({old: value})
    assert found == LiveConfig.model_validate(with_value({}, LIVE[old], value))


def test_a_former_field_of_traffic_counts_as_the_new_one() -> None:
    with collected() as lines:
        found = TrafficSpec.model_validate({"kinds": {"chat": {}}, "crowds": {"every_s": 10, "lasts_s": 2, "times": 4}})
    assert found == TrafficSpec.model_validate(
        {"tasks": {"chat": {}}, "bursts": {"interval_s": 10, "duration_s": 2, "rate_factor": 4}}
    )
    assert sorted(lines) == sorted(f"{old} is now called {new}" for old, new in TRAFFIC.items())


def test_data_that_is_no_mapping_is_left_to_the_model() -> None:
    assert rename_former([1], FLEET) == [1]
    with pytest.raises(ConfigProblems):
        load_config({**GOOD, "router": 3})


def upgrading() -> Iterator[str]:
    """Lines of the section of the changelog that says what an upgrade must rename."""
    text = (ROOT / "CHANGELOG.md").read_text()
    return iter(text.split("### Upgrading\n", 1)[1].split("\n### ", 1)[0].splitlines())


@pytest.mark.parametrize("table", [FLEET, LIVE, TRAFFIC])
def test_the_changelog_lists_every_row(table: Mapping[str, str]) -> None:
    assert {f"  - `{old}` -> `{new}`" for old, new in table.items()} <= set(upgrading())


def test_no_shipped_configuration_uses_a_former_field() -> None:
    for path in (*ROOT.glob("deploy/fleets/*.yaml"), *ROOT.glob("deploy/helm/examples/*.yaml")):
        data = yaml.safe_load(path.read_text())
        load_config(data.get("fleet", data))


def test_other_warnings_are_shown_as_they_were() -> None:
    with pytest.warns(UserWarning, match="of another kind"), collected() as found:
        warnings.warn("of another kind", UserWarning, stacklevel=1)
    assert found == []
