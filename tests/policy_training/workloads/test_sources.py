"""Prompts as commands name them: FILE[:kind][@n]; splits by source; sets that share texts are an error."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from draftpick.policy_training.workloads import Prompt, PromptSource, Selection, prompts_of, read_file
from draftpick.policy_training.workloads.overlap import PromptSets
from draftpick.policy_training.workloads.splits import split_of

WORDS = [f"word{i}" for i in range(500)]


def text(seed: int, n: int = 40) -> str:
    return " ".join(Random(seed).choices(WORDS, k=n))


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Two texts of transfer that repeat one of train; in all, 13 rows of each of two kinds."""
    rows: list[dict[str, Any]] = [
        {"id": f"{kind}-{i}", "kind": kind, "prompt": text(100 * at + i), "split": "train" if i < 8 else "dev"}
        for at, kind in enumerate(("math", "chat"))
        for i in range(12)
    ]
    leaked = f"Another beginning. {rows[0]['prompt']} Another end."
    rows += [{"id": f"leak-{i}", "kind": "chat", "prompt": leaked + i, "split": "transfer"} for i in "ab"]
    rows += [{"id": "clean", "kind": "chat", "prompt": text(999), "split": "transfer"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    ("spelling", "parsed"),
    [
        ("a.jsonl", PromptSource("a.jsonl")),
        ("a.jsonl:math", PromptSource("a.jsonl", "math")),
        ("dir/a.jsonl.gz:math-1@500", PromptSource("dir/a.jsonl.gz", "math-1", 500)),
        ("generated@7", PromptSource("generated", None, 7)),
    ],
)
def test_a_source_names_file_kind_and_number(spelling: str, parsed: PromptSource) -> None:
    assert PromptSource.parse(spelling) == parsed


def test_a_file_of_exactly_that_name_comes_first(tmp_path: Path) -> None:
    (tmp_path / "a:b@3").write_text("Hi")
    assert PromptSource.parse(str(tmp_path / "a:b@3")).kind is None


@pytest.mark.parametrize("wrong", ["a.jsonl@0", ":math", ""])
def test_a_wrong_source_is_an_error(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"give FILE\[:kind\]\[@n\]"):
        PromptSource.parse(wrong)


def test_kinds_of_several_sources_alternate_and_ids_stay_distinct(file: str, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"id": "math-0", "kind": "math", "prompt": "Another one."}))
    sources = [PromptSource.parse(f"{file}:math@3"), PromptSource.parse(f"{tmp_path / 'q.jsonl'}")]
    found = prompts_of([*sources, PromptSource.parse("generated:json@2")], 99, Selection(seed=3))
    assert Counter(prompt.kind for prompt in found) == {"math": 4, "json": 2}
    assert len({prompt.id for prompt in found}) == 6
    assert prompts_of([PromptSource.parse(file)] * 2, 99, Selection()) == prompts_of(
        [PromptSource.parse(file)], 99, Selection()
    )


def test_overlapping_splits_are_an_error_that_names_the_pair_and_the_words(file: str) -> None:
    source = PromptSource.parse(file)
    words = r"'\w+( \w+){7}'"
    with pytest.raises(ValueError, match=rf"train and transfer overlap: 2 .*'leak-\w' shares .* 'math-0': {words}"):
        prompts_of([source], 99, Selection(split="dev"))
    assert len(prompts_of([source], 99, Selection(split="train", overlap="drop"))) == 16
    assert [p.id for p in prompts_of([source], 99, Selection(split="transfer", overlap="drop"))] == ["clean"]
    assert len(prompts_of([source], 99, Selection(split="transfer", overlap="allow"))) == 3


def test_one_of_several_files_may_lack_a_split(file: str, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"prompt": text(7), "split": "test"}))
    sources = [PromptSource(str(tmp_path / "q.jsonl")), PromptSource(file)]
    assert len(prompts_of(sources, 99, Selection(split="dev", overlap="drop"))) == 8
    with pytest.raises(ValueError, match=r"q\.jsonl: no prompt of split 'dev' \(found: test\)"):
        prompts_of(sources[:1], 99, Selection(split="dev"))


def test_phrasing_that_many_prompts_have_is_no_overlap() -> None:
    phrase = "Answer the question by the passage below, in one short sentence, and say nothing else."
    prompts = [Prompt(f"p{i}", "qa", f"{phrase} {text(i)}") for i in range(40)]
    sets = PromptSets({"a": prompts[:20], "b": prompts[20:]})
    assert sets.overlaps("a", "b", 8) == []
    assert len(PromptSets({"a": prompts[:3], "b": prompts[3:6]}).overlaps("a", "b", 8)) == 3


def test_short_and_empty_sets_do_not_overlap() -> None:
    assert PromptSets({"a": [], "b": [Prompt("p", "qa", text(1))]}).overlaps("a", "b", 8) == []
    one = Prompt("p", "qa", "Hi there")
    assert PromptSets({"a": [one], "b": [replace(one, id="q")]}).overlaps("a", "b", 8) == []


def test_a_file_without_splits_is_split_by_source(tmp_path: Path) -> None:
    rows = [{"prompt": text(i), "source": f"source-{i % 50}"} for i in range(1000)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = read_file(tmp_path / "p.jsonl")
    of_split = {split: file.of_split(split) for split in ("train", "dev", "transfer")}  # type: ignore[arg-type]
    sources = {split: {prompt.source for prompt in prompts} for split, prompts in of_split.items()}
    assert not sources["transfer"] & (sources["train"] | sources["dev"])
    assert sources["dev"] <= sources["train"]
    assert 0.05 < len(sources["transfer"]) / 50 < 0.2
    assert 0.05 < len(of_split["dev"]) / 1000 < 0.15
    assert all(split_of(prompt) == file.splits[prompt.id] for prompt in file.prompts)
