"""Models that cannot fit are refused from their `config.json` alone, with the path of the field."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from draftpick.engines import preflight_checks
from draftpick.engines.config import FleetConfig
from draftpick.engines.errors import ConfigError
from draftpick.engines.models.embedded import shipped_drafters
from draftpick.engines.models.paths import drafter_model, target_path
from draftpick.engines.preflight_checks import check_methods, check_models
from draftpick.engines.vllm.support import InstalledVLLM, VersionSupport

SHAPE = {"vocab_size": 1000, "hidden_size": 64}


def model_folder(path: Path, **shape: Any) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**SHAPE, **shape}))
    return str(path)


def fleet(target: str, **drafter: Any) -> FleetConfig:
    """A plain engine and one with this drafter."""
    engines = [{"name": "plain"}, {"name": "drafted", "drafter": {"num_speculative_tokens": 3, **drafter}}]
    return FleetConfig.model_validate({"target": {"source": target}, "engines": engines})


def refusal(config: FleetConfig) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_models(config)
    return caught.value


@pytest.fixture
def target(tmp_path: Path) -> str:
    return model_folder(tmp_path / "target")


def test_a_draft_model_of_the_same_vocabulary_fits(tmp_path: Path, target: str) -> None:
    drafter = model_folder(tmp_path / "drafter", hidden_size=16)
    check_models(fleet(target, method="draft_model", model=drafter))


def test_a_draft_model_of_another_vocabulary_is_refused(tmp_path: Path, target: str) -> None:
    drafter = model_folder(tmp_path / "drafter", vocab_size=999)
    error = refusal(fleet(target, method="draft_model", model=drafter))
    assert error.field == "engines.1.drafter.model"
    assert "'drafted' has vocab_size 999, the target has 1000" in error.problem


@pytest.mark.parametrize("method", ["eagle", "eagle3", "medusa", "mlp_speculator"])
def test_a_head_of_another_hidden_size_is_refused(tmp_path: Path, target: str, method: str) -> None:
    drafter = model_folder(tmp_path / "drafter", hidden_size=32)
    error = refusal(fleet(target, method=method, model=drafter))
    assert error.field == "engines.1.drafter.model"
    assert "hidden_size 32, the target has 64" in error.problem


def test_a_head_of_the_same_hidden_size_fits_with_a_draft_vocabulary_of_its_own(tmp_path: Path, target: str) -> None:
    drafter = model_folder(tmp_path / "drafter", draft_vocab_size=10)
    check_models(fleet(target, method="eagle3", model=drafter))


@pytest.mark.parametrize(
    ("method", "architecture"), [("eagle3", "LlamaForCausalLM"), ("draft_model", "LlamaForCausalLMEagle3")]
)
def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path, target: str, method: str, architecture: str) -> None:
    drafter = model_folder(tmp_path / "drafter", architectures=[architecture])
    error = refusal(fleet(target, method=method, model=drafter))
    assert error.field == "engines.1.drafter.model"
    assert f"method {method} does not support {architecture}" in error.problem


def head_folder(path: Path, **shapes: tuple[int, ...]) -> str:
    folder = model_folder(path, architectures=["LlamaForCausalLMEagle3"])
    tensors = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    save_file(tensors, path / "model.safetensors")
    return folder


def test_a_head_of_other_features_is_refused(tmp_path: Path, target: str) -> None:
    drafter = head_folder(tmp_path / "head", **{"fc.weight": (64, 3 * 48)})
    error = refusal(fleet(target, method="eagle3", model=drafter))
    assert "reads 144 features, not a multiple of the target's hidden size 64" in error.problem


def test_parallel_drafting_needs_a_head_with_a_mask(tmp_path: Path, target: str) -> None:
    drafter = head_folder(tmp_path / "head", **{"fc.weight": (64, 192)})
    error = refusal(fleet(target, method="eagle3", model=drafter, parallel_drafting=True))
    assert "`mask_hidden`" in error.problem
    masked = head_folder(tmp_path / "masked", **{"fc.weight": (64, 192)}, mask_hidden=(192,))
    check_models(fleet(target, method="eagle3", model=masked, parallel_drafting=True))


def test_a_head_without_weights_is_refused(tmp_path: Path, target: str) -> None:
    drafter = model_folder(tmp_path / "head", architectures=["LlamaForCausalLMEagle3"])
    assert "contains no weights" in refusal(fleet(target, method="eagle3", model=drafter)).problem
    (tmp_path / "head" / "pytorch_model.bin").write_bytes(b"not looked into")
    check_models(fleet(target, method="eagle3", model=drafter))


def test_weights_that_are_none_are_refused(tmp_path: Path, target: str) -> None:
    drafter = head_folder(tmp_path / "head")
    (tmp_path / "head" / "model.safetensors").write_bytes(b"no weights")
    assert "is not a safetensors file" in refusal(fleet(target, method="eagle3", model=drafter)).problem


def test_a_size_that_is_not_told_is_not_compared(tmp_path: Path, target: str) -> None:
    drafter = model_folder(tmp_path / "drafter", vocab_size=None)
    check_models(fleet(target, method="draft_model", model=drafter))


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, target: str, text: str) -> None:
    drafter = model_folder(tmp_path / "drafter")
    (tmp_path / "drafter" / "config.json").write_text(text)
    error = refusal(fleet(target, method="draft_model", model=drafter))
    assert error.field == "engines.1.drafter.model"
    assert str(tmp_path / "drafter" / "config.json") in error.problem


def test_a_config_that_is_no_text_is_refused(tmp_path: Path, target: str) -> None:
    drafter = model_folder(tmp_path / "drafter")
    (tmp_path / "drafter" / "config.json").write_bytes(b"\xff\xfe")
    assert refusal(fleet(target, method="draft_model", model=drafter)).field == "engines.1.drafter.model"


def test_a_folder_without_a_config_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "empty").mkdir()
    error = refusal(fleet(target, method="draft_model", model=str(tmp_path / "empty")))
    assert error.field == "engines.1.drafter.model"
    assert "no config.json" in error.problem


def test_a_target_without_a_config_is_refused(tmp_path: Path) -> None:
    error = refusal(fleet(str(tmp_path / "nowhere"), method="ngram"))
    assert error.field == "target.source"


def test_an_unknown_embedded_drafter_is_refused_at_its_field(target: str) -> None:
    error = refusal(fleet(target, method="draft_model", model="embedded:no-such-drafter"))
    assert error.field == "engines.1.drafter.model"
    assert "unknown embedded drafter 'no-such-drafter'" in error.problem
    assert error.fix


def test_an_embedded_drafter_cannot_name_a_folder_outside(target: str) -> None:
    error = refusal(fleet(target, method="draft_model", model="embedded:../weights"))
    assert "unknown embedded drafter" in error.problem


@pytest.mark.parametrize("drafter", shipped_drafters(), ids=lambda path: path.name)
def test_every_shipped_drafter_fits_the_embedded_target(drafter: Path) -> None:
    check_models(fleet("embedded", method="eagle3", model=f"embedded:{drafter.name}"))


def test_a_drafter_class_is_left_to_vllm(target: str) -> None:
    check_models(fleet(target, method="custom_class", model="package.module.Class"))


def test_a_model_of_the_hub_that_is_not_cached_is_left_to_vllm(target: str) -> None:
    check_models(fleet(target, method="draft_model", model="nobody/no-such-model"))


def test_engines_that_are_not_started_here_are_not_checked(tmp_path: Path) -> None:
    missing = {"source": str(tmp_path / "nowhere")}
    engines = [{"name": "m", "kind": "mock"}, {"name": "u", "url": "http://10.0.0.7:8000"}]
    check_models(FleetConfig.model_validate({"target": missing, "engines": engines}))


def test_what_vllm_loads_as_model_and_drafter(target: str) -> None:
    config = fleet(target, method="draft_model", model="some/drafter")
    assert target_path(config.target) == target
    drafter = config.engines[1].drafter
    assert drafter is not None
    assert drafter_model(drafter) == "some/drafter"


ATTENTION = {"num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 30}


def pool(target: str, *heads: str) -> FleetConfig:
    """A pool of these heads, named a, b and so on."""
    drafters = [{"name": name, "method": "eagle3", "model": head} for name, head in zip("ab", heads, strict=False)]
    engines = [{"name": "plain"}, {"name": "pool", "drafters": drafters}]
    return FleetConfig.model_validate({"target": {"source": target}, "engines": engines})


def test_heads_that_read_the_same_layers_share_a_pool(tmp_path: Path) -> None:
    target = model_folder(tmp_path / "target", **ATTENTION)
    default = model_folder(tmp_path / "a", **ATTENTION)
    listed = {"eagle_aux_hidden_state_layer_ids": [2, 15, 27]}
    check_models(pool(target, default, model_folder(tmp_path / "b", **ATTENTION, eagle_config=listed)))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 3]}}, "'b' reads the layers [1, 2, 3], head 'a'"),
        ({"num_key_value_heads": 4}, "'b' has 4 KV heads of size 8, the target has 2 of 8"),
        ({"head_dim": 16}, "'b' has 2 KV heads of size 16, the target has 2 of 8"),
        ({"hidden_size": 32}, "hidden_size 32, the target has 64"),
    ],
)
def test_a_head_that_does_not_fit_its_pool_is_refused(tmp_path: Path, shape: dict[str, Any], said: str) -> None:
    target = model_folder(tmp_path / "target", **ATTENTION)
    heads = model_folder(tmp_path / "a", **ATTENTION), model_folder(tmp_path / "b", **{**ATTENTION, **shape})
    error = refusal(pool(target, *heads))
    assert error.field == "engines.1.drafters.1.model"
    assert said in error.problem
    assert error.fix


# --- methods ---

NEWER = InstalledVLLM("0.40.1", frozenset({"ngram", "ngram_gpu", "eagle3", "custom_class", "arrow"}))


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions of vLLM are known, the later of which dropped a method."""
    known = {
        "0.30.0": VersionSupport(frozenset({"ngram", "medusa", "sparkle"})),
        "0.31.0": VersionSupport(frozenset({"ngram", "medusa"})),
    }
    monkeypatch.setattr(preflight_checks, "known_versions", lambda: known)
    monkeypatch.setattr(preflight_checks, "versions_with", lambda m: [v for v, of in known.items() if m in of.methods])


def drafting(method: str, **engine: Any) -> FleetConfig:
    """One engine with a drafter of this method."""
    drafter = {"method": method, "model": "a/b"}
    return FleetConfig.model_validate({"engines": [{"name": "a", "drafter": drafter, **engine}]})


@pytest.mark.usefixtures("versions")
@pytest.mark.parametrize("method", ["arrow", "ngram", "suffix", "trigram", "hybrid"])
def test_methods_are_those_of_the_installed_vllm_and_ours(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_checks, "installed_vllm", lambda: NEWER)
    assert check_methods(drafting(method)) == []


@pytest.mark.usefixtures("versions")
def test_a_method_that_the_installed_vllm_lacks_is_refused_with_the_nearest_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preflight_checks, "installed_vllm", lambda: NEWER)
    pool = [{"name": "one", "method": "ngram"}, {"name": "two", "method": "eagle3", "model": "a/b"}]
    assert check_methods(FleetConfig.model_validate({"engines": [{"name": "a", "drafters": pool}]})) == []
    with pytest.raises(ConfigError) as caught:
        check_methods(drafting("ngrm"))
    assert caught.value.field == "engines.0.drafter.method"
    assert caught.value.problem == "the installed vLLM 0.40.1 has no method 'ngrm'"
    assert caught.value.fix.startswith("did you mean 'ngram' or 'ngram_gpu'? methods: arrow, custom_class, ")


@pytest.mark.usefixtures("versions")
def test_a_method_that_a_version_dropped_is_refused_with_those_that_had_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_checks, "installed_vllm", lambda: NEWER)
    with pytest.raises(ConfigError, match=r"no method 'medusa'; 0\.30\.0, 0\.31\.0 had it"):
        check_methods(drafting("medusa"))


@pytest.mark.usefixtures("versions")
@pytest.mark.parametrize(
    ("installed", "engine"),
    [
        (None, {}),
        (InstalledVLLM("0.40.1", None), {}),  # it has them where we do not look
        (None, {"url": "http://10.0.0.7:8000"}),
        (NEWER, {"url": "http://10.0.0.7:8000"}),
    ],
)
def test_where_the_engine_s_vllm_cannot_be_asked_an_unknown_method_is_only_warned_of(
    installed: InstalledVLLM | None, engine: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight_checks, "installed_vllm", lambda: installed)
    assert check_methods(drafting("sparkle", **engine)) == []
    (said,) = check_methods(drafting("ngrm", **engine))
    assert str(said).startswith(
        "engines.0.drafter.method: unknown method 'ngrm': no vLLM that is known here has it (did"
    )
    assert "did you mean 'ngram'" in said.fix
