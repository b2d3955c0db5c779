from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from draftpick.engines.drafters.training import trainer as fitting
from draftpick.engines.drafters.training.distill import DistillOptions, distill
from draftpick.engines.drafters.training.responses import Responses
from draftpick.engines.drafters.training.small_llama import Size
from draftpick.engines.drafters.training.target_outputs import TargetOutputs, collect_target_outputs
from draftpick.engines.drafters.training.trainer import FitOptions
from tests.engines.drafters.tiny import VOCABULARY, greedy_answers, load_model, write_target

FIT = FitOptions(epochs=3, batch_tokens=256)
OPTIONS = DistillOptions(size=Size(hidden=16, layers=1, intermediate=32), fit=FIT)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def answers(target: Path) -> Responses:
    return greedy_answers(target)


@pytest.fixture(scope="module")
def teacher(target: Path, answers: Responses, tmp_path_factory: pytest.TempPathFactory) -> TargetOutputs:
    return collect_target_outputs(target, answers, tmp_path_factory.mktemp("teacher") / "t", lambda done, total: None)


def quiet(done: float, loss: float, tau: float) -> None: ...


def test_the_teacher_s_first_token_is_the_answer(answers: Responses, teacher: TargetOutputs) -> None:
    assert len(teacher) == len(answers)
    first = np.concatenate([teacher.likeliest(i)[0][:, 0] for i in range(len(teacher))])
    assert (first == np.concatenate(answers.answer_tokens())).mean() > 0.95
    assert all((teacher.likeliest(i)[1].astype(np.float32).sum(1) < 1.01).all() for i in range(len(teacher)))


def test_joined_teachers_teach_joined_answers(tmp_path: Path, target: Path, answers: Responses) -> None:
    layered = collect_target_outputs(target, answers, tmp_path / "t", lambda done, total: None, layers=(0, 1))
    assert layered.width == 64
    both, twice = TargetOutputs.join([layered, layered]), Responses.join([answers, answers])
    last = len(answers) - 1
    assert len(both) == len(twice) == 2 * len(answers)
    assert (both.likeliest(2 * last + 1)[0] == layered.likeliest(last)[0]).all()
    assert (both.features(last + 1) == layered.features(0)).all()
    assert (twice.answer_tokens()[last + 1] == answers.answer_tokens()[0]).all()


@pytest.mark.parametrize("loss", ["ce", "kl", "tvd", "tvd++"])
def test_every_loss_makes_a_drafter(
    tmp_path: Path, target: Path, answers: Responses, teacher: TargetOutputs, loss: str
) -> None:
    seen: list[float] = []
    options = replace(OPTIONS, loss=loss, fit=replace(FIT, epochs=6))
    result = distill(target, answers, teacher, tmp_path, options, lambda done, loss, tau: seen.append(loss))
    assert np.mean(seen[-5:]) < np.mean(seen[:5]) + 0.02
    assert result["block_efficiency"] >= 1
    assert 0 < result["mbsu"] < result["block_efficiency"]
    drafter = load_model(tmp_path)
    assert drafter.config.vocab_size == VOCABULARY
    assert not (tmp_path / "resume").exists()


def test_other_losses_need_the_teacher(tmp_path: Path, target: Path, answers: Responses) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        distill(target, answers, None, tmp_path, replace(OPTIONS, loss="kl"), quiet)


def test_an_interrupted_run_goes_on_where_it_was(
    tmp_path: Path, target: Path, answers: Responses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "SAVE_EVERY_S", 0.0)
    distill(target, answers, None, tmp_path / "whole", OPTIONS, quiet)
    steps = 0

    def stop(done: float, loss: float, tau: float) -> None:
        nonlocal steps
        steps += 1
        if steps == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(target, answers, None, tmp_path / "cut", OPTIONS, stop)
    before = steps
    distill(target, answers, None, tmp_path / "cut", OPTIONS, stop)
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert steps > before
    # The learning rate follows the clock a little, so the runs agree closely, not to the bit.
    for name in whole:
        torch.testing.assert_close(whole[name], cut[name], atol=0.02, rtol=0.05)


@pytest.mark.parametrize("other", ["options", "answers"])
def test_another_run_s_place_is_not_taken_over(
    tmp_path: Path, target: Path, answers: Responses, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    monkeypatch.setattr(fitting, "SAVE_EVERY_S", 0.0)
    done: list[float] = []

    def stop(share: float, loss: float, tau: float) -> None:
        done.append(share)
        if len(done) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(target, answers, None, tmp_path, OPTIONS, stop)
    if other == "options":
        distill(target, answers, None, tmp_path, replace(OPTIONS, fit=replace(FIT, seed=1)), stop)
    else:
        distill(target, Responses.join([answers, answers]), None, tmp_path, OPTIONS, stop)
    assert done[4] < 0.02
