"""The fleet's configuration: what passes through to vLLM, and every refusal with the path of its field."""

from typing import Any

import pytest
from pydantic import ValidationError

from draftpick.engines.config import Drafter, Engine, FleetConfig, did_you_mean
from draftpick.engines.mock.app import MockSpec

NGRAM = {"method": "ngram", "num_speculative_tokens": 6}


def fleet(*engines: dict[str, Any], **more: Any) -> FleetConfig:
    return FleetConfig.model_validate({"engines": list(engines), **more})


def refusal(*engines: dict[str, Any], **more: Any) -> tuple[tuple[int | str, ...], str]:
    """Path and message of the one error of a fleet."""
    with pytest.raises(ValidationError) as caught:
        fleet(*engines, **more)
    (error,) = caught.value.errors()
    return error["loc"], error["msg"]


def test_arms_follow_the_order_of_the_engines() -> None:
    assert fleet({"name": "b"}, {"name": "a"}).arms == ("b", "a")


def test_an_engine_without_a_drafter_is_a_plain_vllm_engine() -> None:
    engine = fleet({"name": "plain"}).engines[0]
    assert (engine.kind, engine.drafter, engine.url, engine.mock) == ("vllm", None, None, None)


def test_a_url_alone_makes_an_engine_that_somebody_else_runs() -> None:
    engine = fleet({"name": "remote", "url": "http://10.0.0.7:8000"}).engines[0]
    assert engine.kind == "url"
    assert str(engine.url) == "http://10.0.0.7:8000/"


def test_a_mock_block_becomes_a_specification() -> None:
    engine = fleet({"name": "m", "kind": "mock", "mock": {"step_s": 0.5}}).engines[0]
    assert engine.mock == MockSpec(step_s=0.5)


def test_fields_of_vllm_pass_through_the_drafter() -> None:
    drafter = Drafter.model_validate({**NGRAM, "prompt_lookup_max": 4, "not_known_here": {"x": [1]}})
    assert drafter.model_dump(exclude_none=True) == {**NGRAM, "prompt_lookup_max": 4, "not_known_here": {"x": [1]}}


def test_engine_arguments_of_vllm_pass_through() -> None:
    config = fleet({"name": "a", "engine_kwargs": {"max_model_len": 2048}}, engine_kwargs={"dtype": "bfloat16"})
    assert config.engine_kwargs == {"dtype": "bfloat16"}
    assert config.engines[0].engine_kwargs == {"max_model_len": 2048}


@pytest.mark.parametrize("method", ["ngram", "ngram_gpu", "suffix", "mtp", "dspark", "of_a_later_version"])
def test_methods_that_need_no_model(method: str) -> None:
    assert Drafter(method=method, num_speculative_tokens=3).model is None


@pytest.mark.parametrize("method", ["draft_model", "eagle", "eagle3", "custom_class", "medusa"])
def test_methods_that_need_a_model_are_refused_without(method: str) -> None:
    loc, message = refusal({"name": "a", "drafter": {"method": method}})
    assert loc == ("engines", 0, "drafter")
    assert f"method {method!r} needs a `model`" in message


def test_a_method_that_cannot_share_an_engine_is_refused_with_the_nearest_one_that_can() -> None:
    loc, message = refusal({"name": "a", "drafters": [{"name": "one", "method": "sufix"}]})
    assert loc == ("engines", 0, "drafters", 0)
    assert "method 'sufix' cannot share an engine; did you mean 'suffix'? give it an engine of its own" in message


@pytest.mark.parametrize("num", [0, 65])
def test_a_draft_length_outside_the_range_is_refused(num: int) -> None:
    loc, _ = refusal({"name": "a", "drafter": {**NGRAM, "num_speculative_tokens": num}})
    assert loc == ("engines", 0, "drafter", "num_speculative_tokens")


@pytest.mark.parametrize(
    "options", [{"method": "trigram", "search": "full"}, {"method": "hybrid", "trigram": {"search": "full"}}]
)
def test_a_full_search_that_would_not_end_is_refused(options: dict[str, Any]) -> None:
    assert fleet({"name": "a", "drafter": {**options, "num_speculative_tokens": 4}})
    loc, message = refusal({"name": "a", "drafter": {**options, "num_speculative_tokens": 5}})
    assert loc == ("engines", 0, "drafter")
    assert "set num_speculative_tokens to at most 4" in message


def test_an_unknown_field_is_refused_at_its_path() -> None:
    loc, message = refusal({"name": "a", "deployment": {"num_replica": 2}})
    assert loc == ("engines", 0, "deployment", "num_replica")
    assert message == "Extra inputs are not permitted"


def test_engines_of_one_name_are_refused() -> None:
    loc, message = refusal({"name": "b"}, {"name": "a"}, {"name": "a"}, {"name": "b"})
    assert loc == ("engines",)
    assert "duplicate engine names: a, b" in message


def test_a_fleet_without_engines_is_refused() -> None:
    loc, message = refusal()
    assert loc == ("engines",)
    assert "at least one engine" in message


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a/b", "a" * 64])
def test_names_that_no_header_or_deployment_could_carry_are_refused(name: str) -> None:
    loc, _ = refusal({"name": name})
    assert loc == ("engines", 0, "name")


@pytest.mark.parametrize("kind", ["vllm", "mock"])
def test_a_url_with_another_kind_is_refused(kind: str) -> None:
    loc, message = refusal({"name": "a", "kind": kind, "url": "http://10.0.0.7:8000"})
    assert loc == ("engines", 0)
    assert "kind `url` needs `url`" in message


def test_kind_url_without_a_url_is_refused() -> None:
    loc, message = refusal({"name": "a", "kind": "url"})
    assert loc == ("engines", 0)
    assert "kind `url` needs `url`" in message


def test_a_url_that_is_none_is_refused() -> None:
    loc, _ = refusal({"name": "a", "url": "10.0.0.7:8000"})
    assert loc == ("engines", 0, "url")


def test_a_mock_block_on_another_engine_is_refused() -> None:
    loc, message = refusal({"name": "a", "mock": {"step_s": 0.1}})
    assert loc == ("engines", 0)
    assert "`mock` needs `kind: mock`" in message


def test_a_wrong_field_of_a_mock_block_is_refused_at_its_path() -> None:
    loc, _ = refusal({"name": "a", "kind": "mock", "mock": {"fail_share": 2}})
    assert loc == ("engines", 0, "mock", "fail_share")


@pytest.mark.parametrize(
    ("scaling", "field"),
    [
        ({"min_replicas": 0}, "min_replicas"),
        ({"max_replicas": 0}, "max_replicas"),
        ({"target_ongoing_requests": 0}, "target_ongoing_requests"),
        ({"max_replica": 2}, "max_replica"),
    ],
)
def test_a_wrong_field_of_autoscaling_is_refused_at_its_path(scaling: dict[str, Any], field: str) -> None:
    loc, _ = refusal({"name": "a", "deployment": {"autoscaling": scaling}})
    assert loc == ("engines", 0, "deployment", "autoscaling", field)


def test_fewer_replicas_at_most_than_at_least_are_refused() -> None:
    _, message = refusal({"name": "a", "deployment": {"autoscaling": {"min_replicas": 3, "max_replicas": 2}}})
    assert "max_replicas must be at least min_replicas" in message


POOL = [
    {"name": "suffix", "method": "suffix", "num_speculative_tokens": 8},
    {"name": "math", "method": "eagle3", "model": "embedded:math", "num_speculative_tokens": 3},
]


def test_the_arms_of_a_pool_are_its_drafters_and_none() -> None:
    config = fleet({"name": "plain"}, {"name": "pool", "drafters": POOL})
    assert config.arms == ("plain", "pool/none", "pool/suffix", "pool/math")
    assert config.names == ("plain", "pool")
    assert config.engines[1].drafts is True


@pytest.mark.parametrize(
    ("drafters", "field", "said"),
    [
        ([], ("drafters",), "at least one drafter; add one"),
        ([POOL[0], {**POOL[1], "name": "suffix"}], ("drafters",), "duplicate drafter names: suffix; rename them"),
        ([{**POOL[0], "name": "none"}], ("drafters", 0), "'none' is the name for no draft, which every pool has"),
        ([{"method": "suffix"}], ("drafters", 0, "name"), "Field required"),
        ([{"name": "a", "method": "mtp"}], ("drafters", 0), "method 'mtp' cannot share an engine; give it"),
        ([{"name": "a", "method": "suffix", "tocen_cost": 1}], ("drafters", 0), "did you mean 'token_cost'?"),
    ],
)
def test_a_wrong_pool_is_refused_at_its_path(
    drafters: list[dict[str, Any]], field: tuple[int | str, ...], said: str
) -> None:
    loc, message = refusal({"name": "pool", "drafters": drafters})
    assert (loc, said in message) == (("engines", 0, *field), True), message


def test_one_drafter_and_several_exclude_each_other() -> None:
    _, message = refusal({"name": "pool", "drafter": NGRAM, "drafters": POOL})
    assert "`drafter` and `drafters` exclude each other" in message


def test_a_pool_survives_a_round_trip_through_json() -> None:
    engine = fleet({"name": "pool", "drafters": POOL}).engines[0]
    assert Engine.model_validate(engine.model_dump(mode="json")) == engine


def test_configuration_is_frozen() -> None:
    config = fleet({"name": "a", "drafter": NGRAM})
    for model, field in [(config, "engines"), (config.engines[0], "name"), (config.engines[0].drafter, "method")]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(model, field, "other")


def test_an_engine_survives_a_round_trip_through_json() -> None:
    engine = fleet({"name": "m", "kind": "mock", "mock": {"step_s": 0.5}, "drafter": {**NGRAM, "extra": 1}}).engines[0]
    assert Engine.model_validate(engine.model_dump(mode="json")) == engine


def test_nearest_says_nothing_when_nothing_is_near() -> None:
    assert did_you_mean("zzz", ["plain", "ngram"]) == ""
    assert did_you_mean("plan", ["plain", "ngram"]) == "did you mean 'plain'? "
