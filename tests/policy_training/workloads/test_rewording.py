"""Rewording: other words, the same task, the same code."""

import pytest

from draftpick.policy_training.workloads import KINDS, Prompt, generate, reword


@pytest.mark.parametrize("kind", KINDS)
def test_every_prompt_gets_other_words_and_keeps_its_task(kind: str) -> None:
    for prompt in generate(30, seed=5, kinds=[kind]):
        other = reword(prompt, 0)
        assert other.text != prompt.text
        assert (other.id, other.kind, other.temperature, other.max_tokens) == (
            prompt.id, prompt.kind, prompt.temperature, prompt.max_tokens,
        )  # fmt: skip
        assert 0.7 < len(other.text) / len(prompt.text) < 3


def test_the_same_seed_gives_the_same_words() -> None:
    prompt = Prompt("chat-1", "chat", "Explain tea. Write a poem.")
    assert reword(prompt, 1) == reword(prompt, 1)
    assert len({reword(prompt, seed).text for seed in range(20)}) > 3


def test_verbs_change_and_code_does_not() -> None:
    prompt = Prompt(
        "code-1", "code", "Explain this.\n\n```python\ndef add(x): return x  # explain\n```\n\nWrite a test."
    )
    text = reword(prompt, 0).text
    assert "Describe this." in text
    assert "Compose a test." in text
    assert "```python\ndef add(x): return x  # explain\n```" in text


def test_few_words_change() -> None:
    text = reword(Prompt("chat-1", "chat", "write " * 10), 0).text
    assert text.count("compose") == 3
