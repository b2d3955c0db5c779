import json
from pathlib import Path

import pytest

from deploy.corpus import GENERATED, Corpus


@pytest.fixture
def file(tmp_path: Path) -> str:
    lines = [{"prompt": f"{kind} {i}", "kind": kind} for i in range(6) for kind in ("math", "chat")]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(tmp_path / "p.jsonl")


def test_each_kind_of_each_source_is_a_part(file: str) -> None:
    parts = Corpus((file, GENERATED), ("math",), n=4).parts()
    assert [len(part) for part in parts] == [4, 4]
    assert all(text.startswith("math") for text in parts[0])


def test_a_source_may_say_its_own_kind_and_number(file: str) -> None:
    sources = (f"{file}@2", f"{GENERATED}:math@3", f"{file}:chat")
    assert [len(part) for part in Corpus(sources, ("math", "chat"), n=5).parts()] == [2, 2, 3, 5]


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
