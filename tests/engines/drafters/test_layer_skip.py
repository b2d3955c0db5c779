import json
from pathlib import Path

import numpy as np
import pytest
import torch

from draftpick.engines.drafters.training.layer_skip import SearchOptions, Trial, drop_layers, export, search
from tests.engines.drafters.tiny import greedy_answers, load_model, write_target

DEPTH = 4
IDS = torch.tensor([[1, 2, 3, 4, 5]])


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("target"), DEPTH)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return torch.as_tensor(model(input_ids=IDS).logits.float())


def trial(attention: list[bool], mlp: list[bool]) -> Trial:
    return Trial(tuple(attention), tuple(mlp), 2, 1.5, 0.5, 1.1)


def test_a_cut_that_keeps_all_is_the_target(target: Path) -> None:
    model = load_model(target)
    keep = [True] * DEPTH
    assert torch.equal(logits(drop_layers(model, keep, keep)), logits(model))


def test_the_target_itself_stays_whole(target: Path) -> None:
    model = load_model(target)
    before = logits(model)
    logits(drop_layers(model, [True, False, True, False], [False, False, True, True]))
    assert torch.equal(logits(model), before)
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(DEPTH))


def test_left_out_sublayers_add_nothing(target: Path) -> None:
    model = load_model(target)
    attention, mlp = [True, False, False, True], [True, True, False, False]
    skipped = load_model(target)
    for i, layer in enumerate(skipped.model.layers):
        if not attention[i]:
            layer.self_attn.o_proj.weight.data.zero_()
        if not mlp[i]:
            layer.mlp.down_proj.weight.data.zero_()
    cut = drop_layers(model, attention, mlp)
    assert len(cut.model.layers) == 3
    torch.testing.assert_close(logits(cut), logits(skipped))


def test_a_checkpoint_says_and_does_the_same(target: Path, tmp_path: Path) -> None:
    attention, mlp = [True, False, True, True], [True, False, False, True]
    export(target, trial(attention, mlp), tmp_path)
    model = load_model(target, dtype=torch.bfloat16)
    written = load_model(tmp_path, dtype=torch.bfloat16)
    assert written.config.num_hidden_layers == 3
    torch.testing.assert_close(logits(written), logits(drop_layers(model, attention, mlp)))
    assert json.loads((tmp_path / "layer-skip.json").read_text())["attention"] == attention


def test_the_search_finds_a_choice_and_tells_of_each_trial(target: Path) -> None:
    seen: list[float] = []
    options = SearchOptions(trials=8, num_answers=4, lengths=(1, 2))
    best, tried = search(target, greedy_answers(target, 8), options, lambda n, one, best: seen.append(best.speedup))
    assert len(tried) == len(seen) == 8
    assert best.speedup == max(t.speedup for t in tried) == seen[-1]
    assert best.layers >= 1
    assert np.all(np.diff(seen) >= 0)
