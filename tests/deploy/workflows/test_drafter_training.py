"""What the commands that train drafters do around the training."""

import json
from pathlib import Path
from typing import Any

import pytest

from draftpick.deploy.workflows import drafter_training as distill
from draftpick.deploy.workflows import layer_skip
from draftpick.deploy.workflows.drafter_corpus import Corpus
from draftpick.deploy.workflows.drafter_training import compare_losses
from draftpick.deploy.workflows.layer_skip import run_layer_skip
from draftpick.engines.drafters.training.distill import DistillOptions
from draftpick.engines.drafters.training.trainer import FitOptions

CORPUS = Corpus(("generated",), n=2)


def quiet(what: str, done: float, how: str) -> None: ...


class Trainer:
    """Stands for the training: notes what was asked, and may be interrupted."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.patience = 100

    def run(self, corpus: Corpus, options: Any, out: Path, progress: Any) -> dict[str, Any]:
        if self.patience == 0:
            raise KeyboardInterrupt
        self.patience -= 1
        self.trained.append(out.name)
        out.mkdir(parents=True, exist_ok=True)
        figures = dict.fromkeys(("agreement", "block_efficiency", "mbsu", "parameters"), float(len(self.trained)))
        return distill._write("A drafter", corpus, options, figures, out)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    trainer = Trainer()
    monkeypatch.setattr(distill, "run_distill", trainer.run)
    monkeypatch.setattr(layer_skip, "run_distill", trainer.run)
    return trainer


def test_losses_are_compared_from_one_start_also_after_an_interrupt(tmp_path: Path, trainer: Trainer) -> None:
    trainer.patience = 2
    with pytest.raises(KeyboardInterrupt):
        compare_losses(CORPUS, DistillOptions(), tmp_path, ["ce", "kl"], quiet)
    trainer.patience = 100
    results = compare_losses(CORPUS, DistillOptions(), tmp_path, ["ce", "kl"], quiet)
    assert trainer.trained == ["start", "ce", "kl"]
    assert {name: result["agreement"] for name, result in results.items()} == {"start": 1, "ce": 2, "kl": 3}


def test_other_options_are_another_comparison(tmp_path: Path, trainer: Trainer) -> None:
    compare_losses(CORPUS, DistillOptions(), tmp_path, ["kl"], quiet)
    compare_losses(CORPUS, DistillOptions(fit=FitOptions(minutes=1)), tmp_path, ["kl"], quiet)
    assert trainer.trained == ["start", "kl"] * 2


def test_a_search_is_not_made_again_when_its_healing_was_interrupted(
    tmp_path: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []

    def search(corpus: Corpus, trials: int, out: Path, cut: Path, progress: Any) -> dict[str, Any]:
        searched.append(trials)
        return {"best": {"num_speculative_tokens": 4, "layers": 9}, "trials": []}

    monkeypatch.setattr(layer_skip, "_search", search)
    trainer.patience = 0
    with pytest.raises(KeyboardInterrupt):
        run_layer_skip(CORPUS, tmp_path, trials=5, heal_minutes=1, progress=quiet)
    trainer.patience = 1
    result = run_layer_skip(CORPUS, tmp_path, trials=5, heal_minutes=1, progress=quiet)
    assert searched == [5]
    assert result["healed"]["options"]["num_speculative_tokens"] == 4
    run_layer_skip(CORPUS, tmp_path, trials=6, heal_minutes=0, progress=quiet)
    assert searched == [5, 6]
    assert json.loads((tmp_path / "search.json").read_text())["asked"]["trials"] == 6
