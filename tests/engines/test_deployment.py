"""What Ray Serve is asked for, without Ray running."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from draftpick.engines.config import FleetConfig
from draftpick.engines.deployment import build_engine, deployment_options, llm_config, scale_on_demand
from draftpick.engines.errors import ConfigError
from draftpick.engines.models.embedded import TARGET_NAME

NGRAM = {"method": "ngram", "num_speculative_tokens": 6, "prompt_lookup_max": 4}


def fleet(*, target: str = "some/model", shared: dict[str, Any] | None = None, **engine: Any) -> FleetConfig:
    """A fleet of one engine called `a`; `shared` are the arguments of all engines."""
    return FleetConfig.model_validate(
        {
            "target": {"name": "served-name", "source": target},
            "engines": [{"name": "a", **engine}],
            "engine_kwargs": shared or {},
        }
    )


def llm(**engine: Any) -> dict[str, Any]:
    config = fleet(**engine)
    return llm_config(config, config.engines[0])


def options(**engine: Any) -> dict[str, Any]:
    config = fleet(**engine)
    return deployment_options(config, config.engines[0])


def test_importing_and_building_start_no_ray() -> None:
    config = fleet(kind="mock")
    build_engine(config, config.engines[0])
    assert not ray.is_initialized()


def test_the_target_is_served_under_its_name() -> None:
    assert llm()["model_loading_config"] == {"model_id": "served-name", "model_source": "some/model"}


def test_the_embedded_target_is_served_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTPICK_CACHE", str(tmp_path))
    folder = tmp_path / TARGET_NAME
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert llm(target="embedded")["model_loading_config"]["model_source"] == str(folder)


def test_a_plain_engine_has_no_speculation_and_no_flag_about_it() -> None:
    kwargs = llm()["engine_kwargs"]
    assert "speculative_config" not in kwargs
    assert "per_request_spec_decode_metrics" not in kwargs
    assert kwargs["enable_per_request_metrics"] is True


def test_our_options_of_a_head_are_kept_from_vllms_speculative_config() -> None:
    head = {"method": "eagle3", "model": "a/b", "num_speculative_tokens": 4}
    kwargs = llm(drafter={**head, "draft_exit": True})["engine_kwargs"]
    assert kwargs["speculative_config"] == head
    assert kwargs["additional_config"] == {"drafter": {"draft_exit": True}}


def test_a_drafter_becomes_vllms_own_speculative_config() -> None:
    kwargs = llm(drafter=NGRAM)["engine_kwargs"]
    assert kwargs["speculative_config"] == NGRAM
    assert kwargs["per_request_spec_decode_metrics"] == "summary"


def test_a_draft_model_keeps_its_name() -> None:
    drafter = {"method": "draft_model", "model": "some/drafter", "num_speculative_tokens": 3}
    assert llm(drafter=drafter)["engine_kwargs"]["speculative_config"] == drafter


def test_an_engines_arguments_win_over_the_fleets_and_both_over_ours() -> None:
    shared = {"dtype": "float32", "max_model_len": 1, "enable_per_request_metrics": False}
    own = {"max_model_len": 2, "enable_chunked_prefill": True, "ir_op_priority": {}}
    assert llm()["engine_kwargs"]["enable_chunked_prefill"] is False
    given = llm(shared=shared, engine_kwargs=own)["engine_kwargs"]
    assert {name: value for name, value in given.items() if name != "middleware"} == shared | own


def test_pages_go_after_the_user_s_own_middleware() -> None:
    pages = "draftpick.engines.vllm.middleware.VLLMPages"
    assert llm()["engine_kwargs"]["middleware"] == [pages]
    assert llm(shared={"middleware": ["mine.Own"]})["engine_kwargs"]["middleware"] == ["mine.Own", pages]


@pytest.mark.parametrize(
    ("target", "able", "dtype"),
    [("embedded", False, "float32"), ("embedded", True, None), ("some/model", False, None)],
)
def test_the_embedded_target_is_computed_in_what_the_processor_computes_in(
    target: str, able: bool, dtype: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAFTPICK_CACHE", str(tmp_path))
    (tmp_path / TARGET_NAME).mkdir()
    (tmp_path / TARGET_NAME / "config.json").write_text("{}")
    monkeypatch.setattr("draftpick.engines.vllm.arguments.computes_bfloat16", lambda: able)
    assert llm(target=target)["engine_kwargs"].get("dtype") == dtype
    assert llm(target=target, shared={"dtype": "bfloat16"})["engine_kwargs"]["dtype"] == "bfloat16"
    assert "dtype" not in llm(target=target, deployment={"accelerator": "gpu"})["engine_kwargs"]


def test_prefills_are_split_on_gpus() -> None:
    assert "enable_chunked_prefill" not in llm(deployment={"accelerator": "gpu"})["engine_kwargs"]


def test_a_cpu_engine_asks_for_cpus_alone() -> None:
    config = llm(deployment={"num_cpus": 2})
    assert config["accelerator_config"] == {"kind": "cpu"}
    assert config["placement_group_config"] == {"bundles": [{"CPU": 2.0}]}
    assert "accelerator_type" not in config


def test_a_gpu_engine_asks_for_one_gpu_per_worker() -> None:
    config = llm(deployment={"accelerator": "gpu"}, engine_kwargs={"tensor_parallel_size": 2})
    assert config["accelerator_config"] == {"kind": "gpu"}
    assert config["placement_group_config"] == {"bundles": [{"GPU": 1.0, "CPU": 0.5}] * 2}


def test_workers_are_tensor_times_pipeline_parallel() -> None:
    sizes = {"tensor_parallel_size": 2, "pipeline_parallel_size": 3}
    assert llm(engine_kwargs=sizes)["placement_group_config"] == {"bundles": [{"CPU": 0.5}] * 6}


def test_a_kind_of_gpu_is_asked_for_by_name() -> None:
    config = llm(deployment={"accelerator": "gpu", "accelerator_type": "H100"})
    assert config["accelerator_type"] == "H100"
    (bundle,) = config["placement_group_config"]["bundles"]
    assert bundle["accelerator_type:H100"] == 0.001


def test_the_replicas_actor_fits_into_the_first_bundle() -> None:
    asked = options(deployment={"accelerator": "gpu", "num_cpus": 1}, engine_kwargs={"tensor_parallel_size": 2})
    assert asked["placement_group_bundles"] == [{"GPU": 1.0, "CPU": 1.1}, {"GPU": 1.0, "CPU": 1.0}]
    assert asked["ray_actor_options"]["num_cpus"] == 0.1


def test_both_sides_see_the_sizes_that_the_fleet_shares() -> None:
    config = fleet(shared={"tensor_parallel_size": 2})
    bundles = llm_config(config, config.engines[0])["placement_group_config"]["bundles"]
    assert bundles == [{"CPU": 0.5}] * 2
    asked = deployment_options(config, config.engines[0])
    assert asked["placement_group_bundles"] == [{"CPU": 0.6}, {"CPU": 0.5}]


def test_a_mock_engine_needs_no_placement_group() -> None:
    assert "placement_group_bundles" not in options(kind="mock")


def test_a_deployment_is_called_after_its_engine_and_outlasts_its_drain() -> None:
    asked = options(deployment={"num_replicas": 3, "drain_timeout_s": 40})
    assert asked["name"] == "engine-a"
    assert asked["num_replicas"] == 3
    assert asked["graceful_shutdown_timeout_s"] > 40


def test_autoscaling_takes_the_place_of_a_fixed_number_and_looks_at_requests_in_flight() -> None:
    asked = options(deployment={"autoscaling": {"max_replicas": 4, "target_ongoing_requests": 5}})
    assert "num_replicas" not in asked
    scaling = asked["autoscaling_config"]
    assert scaling["policy"] == {"policy_function": "draftpick.engines.deployment:scale_on_demand"}
    assert (scaling["min_replicas"], scaling["max_replicas"], scaling["target_ongoing_requests"]) == (1, 4, 5)
    assert None not in scaling.values()


def test_the_users_own_options_win() -> None:
    assert options(deployment={"options": {"max_ongoing_requests": 5}})["max_ongoing_requests"] == 5


def environment(**engine: Any) -> dict[str, str]:
    return dict(options(**engine)["ray_actor_options"]["runtime_env"]["env_vars"])


def test_the_embedded_target_is_served_offline_unless_the_environment_says_otherwise() -> None:
    assert "HF_HUB_OFFLINE" not in environment()
    given = environment(target="embedded", deployment={"env": {"A": "1"}})
    assert (given["HF_HUB_OFFLINE"], given["A"]) == ("1", "1")
    assert environment(target="embedded", deployment={"env": {"HF_HUB_OFFLINE": "0"}})["HF_HUB_OFFLINE"] == "0"


@pytest.mark.parametrize(("num_cpus", "threads"), [(0.5, "1"), (4, "4")])
def test_an_engine_on_cpus_computes_with_its_own_cpus(num_cpus: float, threads: str) -> None:
    given = environment(deployment={"num_cpus": num_cpus})
    assert (given["OMP_NUM_THREADS"], given["VLLM_CPU_OMP_THREADS_BIND"]) == (threads, "nobind")
    assert environment(deployment={"num_cpus": 4, "env": {"OMP_NUM_THREADS": "2"}})["OMP_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in environment(deployment={"accelerator": "gpu"})


def context(metrics: dict[str, dict[str, float]] | None, target: float = 2.0) -> SimpleNamespace:
    """What Serve hands to an autoscaling policy, as far as ours looks at it."""
    config = SimpleNamespace(get_target_ongoing_requests=lambda: target)
    return SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=7, config=config)


@pytest.mark.parametrize(
    ("in_flight", "num_replicas"), [({"r1": 0.0}, 0), ({"r1": 1.0}, 1), ({"r1": 3.0, "r2": 2.0}, 3), ({"r1": 4.0}, 2)]
)
def test_replicas_follow_the_requests_in_flight(in_flight: dict[str, float], num_replicas: int) -> None:
    assert scale_on_demand(context({"in_flight": in_flight})) == (num_replicas, {})


@pytest.mark.parametrize("metrics", [None, {}, {"other": {"r1": 9.0}}, {"in_flight": {}}])
def test_without_reports_the_number_stays(metrics: dict[str, dict[str, float]] | None) -> None:
    assert scale_on_demand(context(metrics)) == (7, {})


def test_what_routers_want_goes_before_what_is_in_flight() -> None:
    assert scale_on_demand(context({"in_flight": {"r1": 9.0}, "wanted": {"r1": 3.0, "r2": 2.0}})) == (3, {})
    assert scale_on_demand(context({"in_flight": {"r1": 9.0}, "wanted": {"r1": 0.0}})) == (5, {})


POOL = [
    {"name": "code", "method": "eagle3", "model": "heads/code", "num_speculative_tokens": 4},
    {"name": "copy", "method": "suffix", "num_speculative_tokens": 8},
]


def test_a_pool_names_all_its_drafters_to_vllm() -> None:
    kwargs = llm(drafters=POOL, engine_kwargs={"additional_config": {"mine": 1}})["engine_kwargs"]
    speculation = kwargs["speculative_config"]
    assert (speculation["method"], speculation["model"], speculation["num_speculative_tokens"]) == (
        "eagle3",
        "heads/code",
        8,
    )
    assert speculation["disable_padded_drafter_batch"] is True
    assert kwargs["additional_config"]["mine"] == 1
    assert [one["name"] for one in kwargs["additional_config"]["draftpick_pool"]["drafters"]] == ["code", "copy"]
    assert kwargs["scheduler_cls"].endswith("PoolScheduler")
    assert kwargs["per_request_spec_decode_metrics"] == "summary"


def test_a_pool_runs_on_vllm_s_first_model_runner() -> None:
    env = options(drafters=POOL)["ray_actor_options"]["runtime_env"]["env_vars"]
    assert env["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    assert "VLLM_USE_V2_MODEL_RUNNER" not in options(drafter=NGRAM)["ray_actor_options"]["runtime_env"]["env_vars"]


def test_a_pool_without_a_head_is_rejected_with_its_alternative() -> None:
    with pytest.raises(ConfigError, match="hybrid"):
        llm(drafters=POOL[1:])
