"""Workloads: a seed gives the same prompts, another seed others, all fit a small model; files are checked."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from draftpick.policy_training.workloads import KINDS, Prompt, generate, interleaved
from draftpick.policy_training.workloads.library import functions, passage

MAX_WORDS = 350
MAX_CHARACTERS = 4000  # a tokenizer makes about 1,300 tokens of that much code


def texts(prompts: list[Prompt]) -> set[str]:
    return {prompt.text for prompt in prompts}


def test_same_seed_same_prompts() -> None:
    assert generate(120, seed=5, sampled_share=0.3) == generate(120, seed=5, sampled_share=0.3)


def test_same_seed_same_prompts_in_another_process() -> None:
    code = "from draftpick.policy_training.workloads import generate; print([p.text for p in generate(40, seed=9)])"
    command, root = [sys.executable, "-c", code], Path(__file__).parents[3]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout
    assert ast.literal_eval(found) == [prompt.text for prompt in generate(40, seed=9)]


def test_a_longer_call_begins_with_the_same_prompts_of_each_kind() -> None:
    short, long = ({p.id: p.text for p in generate(n, seed=2)} for n in (30, 90))
    assert short.items() <= long.items()


@pytest.mark.parametrize("kind", KINDS)
def test_500_distinct_prompts_of_each_kind_that_fit_a_small_model(kind: str) -> None:
    prompts = generate(500, seed=0, kinds=[kind])
    assert len(texts(prompts)) == len({p.id for p in prompts}) == 500
    assert all(re.fullmatch(rf"{kind}-\d+", p.id) and p.kind == kind for p in prompts)
    assert max(len(p.text.split()) for p in prompts) <= MAX_WORDS
    assert max(len(p.text) for p in prompts) <= MAX_CHARACTERS
    assert all(p.text == p.text.strip() and len(p.text) > 20 for p in prompts)


@pytest.mark.parametrize("kind", KINDS)
def test_two_seeds_share_almost_nothing(kind: str) -> None:
    train, held_out = (generate(500, seed=seed, kinds=[kind]) for seed in (1, 2))
    assert len(texts(train) & texts(held_out)) <= 5
    assert not {p.id for p in train} & {p.id for p in held_out}


@pytest.mark.parametrize("n", [0, 1, 6, 100])
def test_kinds_are_evenly_mixed(n: int) -> None:
    counts = Counter(prompt.kind for prompt in generate(n, seed=3))
    assert sum(counts.values()) == n
    assert max(counts[kind] for kind in KINDS) - min(counts[kind] for kind in KINDS) <= 1


def test_order_is_shuffled() -> None:
    kinds = [prompt.kind for prompt in generate(60, seed=3)]
    assert kinds != sorted(kinds, key=KINDS.index)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 50), (1.0, 200)])
def test_sampled_share_is_exact(share: float, expected: int) -> None:
    prompts = generate(200, seed=4, kinds=["math", "chat"], sampled_share=share)
    assert Counter(p.temperature for p in prompts) == +Counter({0.7: expected, 0.0: 200 - expected})


def test_sampled_share_changes_nothing_else() -> None:
    greedy, mixed = (generate(60, seed=4, kinds=["math"], sampled_share=share) for share in (0.0, 0.5))
    assert [(p.id, p.text) for p in greedy] == [(p.id, p.text) for p in mixed]


def test_max_tokens_and_defaults() -> None:
    assert {p.max_tokens for p in generate(6, seed=0, kinds=["chat"], max_tokens=17)} == {17}
    assert (Prompt("a-1", "a", "x").temperature, Prompt("a-1", "a", "x").max_tokens) == (0.0, 128)


def test_a_kind_named_twice_counts_once() -> None:
    assert generate(10, seed=1, kinds=["math", "math"]) == generate(10, seed=1, kinds=["math"])


def test_unknown_kind_names_all_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'sumary'.*math, code, edit, summary, chat, json.*mean 'summary'"):
        generate(1, seed=0, kinds=["math", "sumary"])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"n": -1}, "n is -1"),
        ({"n": 1, "kinds": []}, "kinds is empty"),
        ({"n": 1, "sampled_share": 1.5}, "sampled_share is 1.5"),
        ({"n": 1, "max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        generate(**{"seed": 0, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(40))
def test_passages_keep_their_length_and_end_with_a_sentence(seed: int) -> None:
    text = passage(Random(seed), 80, 220)
    assert 80 <= len(text.split()) <= 220
    assert re.search(r"[.!?][\")”]?$", text)


def test_functions_are_whole_python() -> None:
    sample = Random(0).sample(functions(), 200)
    assert all(isinstance(ast.parse(f.source).body[0], ast.FunctionDef) for f in sample)
    assert all(f"def {f.name}(" in f.source for f in sample)


def test_stubs_to_complete_are_python_with_examples_in_the_docstring() -> None:
    stubs = [p.text for p in generate(200, seed=6, kinds=["code"]) if p.text.startswith("Complete this Python")]
    assert stubs
    for text in stubs:
        code = text.partition("```python\n")[2].rpartition("\n```")[0]
        docstring = ast.get_docstring(ast.parse(code).body[0])  # type: ignore[arg-type]
        assert docstring
        assert ">>> " in docstring


def test_interleaved_prompts_come_in_rounds_of_all_kinds() -> None:
    prompts = [Prompt(f"{kind}-{i}", kind, "text") for kind, n in (("b", 3), ("a", 1), ("c", 2)) for i in range(n)]
    assert [p.id for p in interleaved(prompts)] == ["a-0", "b-0", "c-0", "b-1", "c-1", "b-2"]
