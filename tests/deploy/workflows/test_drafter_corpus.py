import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftpick.deploy.workflows import drafter_corpus as corpora
from draftpick.deploy.workflows.drafter_corpus import Corpus, answers_of
from draftpick.engines.drafters.training.responses import GenerationRequest, Responses
from draftpick.policy_training.workloads import GENERATED


@pytest.fixture
def file(tmp_path: Path) -> str:
    lines = [{"prompt": f"{kind} {i}", "kind": kind} for i in range(6) for kind in ("math", "chat")]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(tmp_path / "p.jsonl")


def test_each_kind_of_each_source_is_a_part(file: str) -> None:
    parts = Corpus((file, GENERATED), ("math",), n=4).parts()
    assert [len(part) for part in parts] == [4, 4]
    assert all(prompt.text.startswith("math") for prompt in parts[0])


def test_a_source_may_say_its_own_kind_and_number(file: str) -> None:
    sources = (f"{file}:math@2", f"{GENERATED}:math@3", f"{file}:chat")
    assert [len(part) for part in Corpus(sources, ("math", "chat"), n=5).parts()] == [2, 3, 5]


def test_no_prompt_comes_twice(file: str) -> None:
    parts = Corpus((f"{file}@2", file), n=6).parts()
    texts = [prompt.text for part in parts for prompt in part]
    assert len(texts) == len(set(texts)) == 12
    assert len(Corpus((file, file)).parts()) == 2


def test_a_source_without_the_kind_that_it_names_is_an_error(file: str) -> None:
    for source in (f"{file}:poetry", f"{GENERATED}:poetry"):
        with pytest.raises(ValueError, match="no prompts of kind poetry"):
            Corpus((file, source)).parts()


def test_the_same_seed_gives_the_same_parts_and_another_one_others() -> None:
    once, again, other = (Corpus((GENERATED,), ("math",), n=5, seed=seed).parts() for seed in (1, 1, 2))
    assert once == again != other


def test_a_kind_that_no_source_holds_is_an_error(file: str) -> None:
    with pytest.raises(ValueError, match="no prompts of kind poetry"):
        Corpus((file,), ("poetry",)).parts()


class Target:
    """Answers each prompt with its length, unless it is too long, and may be interrupted after some shards."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.patience = 100

    def __call__(self, asks: Sequence[GenerationRequest]) -> tuple[list[int], Responses]:
        if self.patience == 0:
            raise KeyboardInterrupt
        self.patience -= 1
        self.asked.append(len(asks))
        lengths = [len(ask.messages[-1]["content"]) for ask in asks]
        places = [i for i, length in enumerate(lengths) if length < 10]
        tokens = np.asarray([[1, lengths[i]] for i in places], np.int32).reshape(-1)
        return places, Responses(tokens, 2 * np.arange(len(places) + 1), np.ones(len(places), np.int32))


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    target = Target()
    monkeypatch.setattr(corpora, "ResponseGenerator", lambda *_, **__: target)
    monkeypatch.setattr(corpora, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(corpora, "_SHARD", 6)
    return target


def test_an_interrupt_loses_the_shard_that_is_under_way_alone(file: str, target: Target) -> None:
    corpus = Corpus((file,), n=6, target="some/model")
    target.patience = 1
    with pytest.raises(KeyboardInterrupt):
        answers_of(corpus)
    target.patience = 100
    answers = answers_of(corpus)
    assert target.asked == [6, 6]
    assert [len(answer) for answer in answers.answer_tokens()] == [1] * 12
    assert answers_of(corpus).tokens.tolist() == answers.tokens.tolist()
    assert target.asked == [6, 6]


def test_an_enlarged_or_mixed_corpus_asks_for_new_prompts_alone(file: str, target: Target) -> None:
    few = answers_of(Corpus((f"{file}:math@2",), target="some/model"))
    more = answers_of(Corpus((f"{file}:math@5", f"{file}:chat@1"), target="some/model"))
    assert target.asked == [2, 4]
    assert len(more) == 6
    assert more.tokens[: len(few.tokens)].tolist() == few.tokens.tolist()
    answers_of(Corpus((f"{file}:math@2",), target="some/model", temperatures=(0.7,)))
    answers_of(Corpus((f"{file}:math@2",), target="some/model", max_tokens=9))
    answers_of(Corpus((f"{file}:math@2",), target="some/model", seed=1))
    assert target.asked[2:] == [2, 2, 2]


def test_a_prompt_that_is_too_long_is_asked_once(tmp_path: Path, target: Target) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "short"}\n{"prompt": "longer than ten"}')
    for _ in range(2):
        assert answers_of(Corpus((str(tmp_path / "p.jsonl"),), target="some/model")).tokens.tolist() == [1, 5]
    assert target.asked == [2]


def test_answers_of_another_target_or_of_changed_weights_are_not_taken(
    tmp_path: Path, file: str, target: Target
) -> None:
    folders = [tmp_path / version / "model" for version in ("v1", "v2")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        answers_of(Corpus((file,), ("math",), target=str(folder)))
    assert len(target.asked) == 2
    (folders[0] / "model.safetensors").write_bytes(b"other weights")
    answers_of(Corpus((file,), ("math",), target=str(folders[0])))
    assert len(target.asked) == 3
    answers_of(Corpus((file,), ("math",), target=str(folders[1])))
    assert len(target.asked) == 3


def test_a_full_disk_leaves_no_half_of_a_file(
    tmp_path: Path, file: str, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(out: Any, **arrays: Any) -> None:
        out.write(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(np, "savez_compressed", full)
        with pytest.raises(OSError, match="No space"):
            answers_of(Corpus((file,), target="some/model"))
    assert list((tmp_path / "cache" / "answers").glob("*/*")) == []
    assert len(answers_of(Corpus((file,), target="some/model"))) == 12
