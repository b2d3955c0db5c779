"""The prompts of a seed stay the same to the byte: shipped figures and stored labels rest on them."""

import hashlib
import json
import sys
from collections.abc import Sequence

import pytest

from draftpick.policy_training.workloads import KINDS, generate, reword

PYTHON = (3, 11, 7)
"""Prompts of some kinds quote the standard library, whose texts change with every release."""
SEEDS = (0, 7, 123)
FIELDS = ("id", "kind", "text", "temperature", "max_tokens", "top_p")


def digest(kinds: Sequence[str]) -> str:
    """A hash of 600 prompts of each seed, in order and with what is sent, and of these reworded."""
    found = hashlib.sha256()
    for seed in SEEDS:
        for prompt in generate(600, seed=seed, kinds=kinds, sampled_share=0.3, max_tokens=77):
            for one in (prompt, reword(prompt, seed + 1)):
                found.update(json.dumps({name: getattr(one, name) for name in FIELDS}).encode())
    return found.hexdigest()


def test_prompts_that_quote_nothing() -> None:
    assert digest(("math", "chat", "json")) == "40e44a010df820645c36fde9aeb2f6d1707d7fa5e3be4cabf506dd066e4f0c91"


@pytest.mark.skipif(sys.version_info[:3] != PYTHON, reason=f"the hash is of Python {PYTHON}'s standard library")
def test_all_prompts() -> None:
    assert digest(KINDS) == "1716eb229df08f34089e6144c5b5b95b33dc4bf832b23fd7e65fcccaad47d60e"
