import json
from pathlib import Path

import numpy as np
import pytest
import torch

from draftpick.engines.drafters.training.eagle3 import (
    EagleOptions,
    chain_matches,
    copy_weights,
    draft_vocabulary,
    feature_layers,
    load_head,
    make_head,
    replay_chains,
    target_features,
    train,
)
from draftpick.engines.drafters.training.responses import Responses
from draftpick.engines.drafters.training.target_outputs import collect_target_outputs
from draftpick.engines.drafters.training.trainer import FitOptions
from tests.engines.drafters.tiny import VOCABULARY, greedy_answers, load_model, write_target

FIT = FitOptions(epochs=25, batch_tokens=512, learning_rate=3e-3)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("target"), layers=7)


@pytest.fixture(scope="module")
def answers(target: Path) -> Responses:
    return greedy_answers(target)


@pytest.fixture(scope="module", params=[False, True], ids=["chained", "parallel"])
def trained(
    target: Path, answers: Responses, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Path, dict[str, float]]:
    out = tmp_path_factory.mktemp("head")
    teacher = collect_target_outputs(target, answers, out / "teacher", lambda done, total: None, feature_layers(7))
    options = EagleOptions(draft_vocab_size=48, steps=3, parallel=request.param, fit=FIT)
    return out, train(target, answers, teacher, out, options, lambda done, loss, tau: None)


def test_the_vocabulary_is_the_commonest_tokens(answers: Responses) -> None:
    vocabulary = draft_vocabulary(answers, 10).numpy()
    tokens, counts = np.unique(np.concatenate(answers.answer_tokens()), return_counts=True)
    left_out = counts[~np.isin(tokens, vocabulary)]
    assert (np.diff(vocabulary) > 0).all()
    assert counts[np.isin(tokens, vocabulary)].min() >= left_out.max(initial=0)


def test_training_makes_drafts_that_are_accepted(trained: tuple[Path, dict[str, float]]) -> None:
    _, result = trained
    assert result["block_efficiency"] > 1.3
    assert result["survival/1"] >= result["survival/2"] >= result["survival/3"]


def test_the_checkpoint_is_in_vllm_s_form(trained: tuple[Path, dict[str, float]]) -> None:
    from safetensors.torch import load_file

    folder, _ = trained
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["draft_vocab_size"] == len(load_file(folder / "model.safetensors")["d2t"]) <= 48
    tensors = load_file(folder / "model.safetensors")
    assert tensors["fc.weight"].shape == (32, 96)
    assert tensors["midlayer.self_attn.q_proj.weight"].shape == (32, 64)
    assert tensors["t2d"].sum() == len(tensors["d2t"])
    assert "embed_tokens.weight" not in tensors


def test_a_head_goes_on_from_another_one_of_another_vocabulary(
    trained: tuple[Path, dict[str, float]], target: Path
) -> None:
    model = load_model(target, dtype=torch.bfloat16).eval()
    start = load_head(trained[0], model)
    head = make_head(model, torch.arange(0, VOCABULARY, 2), parallel=start.parallel)
    fresh = head.lm_head.weight.clone()
    copy_weights(start, head)
    assert torch.equal(head.fc.weight, start.fc.weight)
    for row, token in enumerate(range(0, VOCABULARY, 2)):
        known = int(start.to_draft[token])
        assert torch.equal(head.lm_head.weight[row], start.lm_head.weight[known] if known >= 0 else fresh[row])


def test_a_head_survives_its_file(trained: tuple[Path, dict[str, float]], target: Path, answers: Responses) -> None:
    model = load_model(target, dtype=torch.bfloat16).eval()
    head = load_head(trained[0], model)
    ids = torch.from_numpy(answers.tokens[: answers.starts[1]].astype(np.int64))
    features = target_features(model, ids[None], head.features)[0]
    matches = chain_matches(head, model.get_input_embeddings(), ids, features, int(answers.answer_at[0]), 3)
    assert matches.shape == (len(answers.answer_tokens()[0]) - 1, 3)
    assert replay_chains(matches).acceptance_length >= 1


@pytest.mark.parametrize("parallel", [False, True])
def test_a_later_step_sees_no_later_token(target: Path, answers: Responses, parallel: bool) -> None:
    """Step s from place t may know the tokens up to t + 1 + s, a parallel one up to t + 1, and no other's drafts."""
    model = load_model(target, dtype=torch.float32).eval()
    head = make_head(model, torch.arange(VOCABULARY), parallel)
    ids = torch.from_numpy(answers.tokens[: answers.starts[1]].astype(np.int64))[None]
    changed = ids.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % VOCABULARY
    embed = model.get_input_embeddings()
    with torch.no_grad():
        before = head(embed, ids, target_features(model, ids, head.features), 3)
        after = head(embed, changed, target_features(model, changed, head.features), 3)
    for step in range(3):
        same = 9 - 1 - (0 if parallel else step)  # places t whose last known token is before place 9
        torch.testing.assert_close(before[step][0, :same], after[step][0, :same])
        assert not torch.allclose(before[step][0, same], after[step][0, same])


def test_chains_are_replayed_in_blocks() -> None:
    matches = np.asarray([[1, 1, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0]], bool)
    # Place 0: two right, so on to place 3: three right, so on to place 7, the last.
    assert replay_chains(matches).accepted.tolist() == [2, 3, 0]
