"""Train, dev and transfer: which prompts fit a policy or a drafter, which choose between them, and which only judge."""

from hashlib import sha256
from typing import Literal, get_args

from draftpick.policy_training.workloads.prompts import Prompt

Split = Literal["train", "dev", "transfer"]
"""`dev`: other prompts of train's sources; `transfer`: sources that train and dev lack."""
SPLITS: tuple[str, ...] = get_args(Split)
_HELD_OUT = 0.1
"""Share of the sources that go to transfer, and of the other sources' prompts that go to dev."""


def split_of(prompt: Prompt) -> Split:
    """The split of a prompt whose file names none, by hashes: more data move no prompt to another split."""
    if _fraction("source", prompt.source) < _HELD_OUT:
        return "transfer"
    said = [turn["content"] for turn in prompt.messages]
    return "dev" if _fraction("prompt", *said) < _HELD_OUT else "train"


def _fraction(*words: str) -> float:
    """A number in [0, 1) that depends on the words alone."""
    return int.from_bytes(sha256("\0".join(words).encode()).digest()[:6]) / 2**48
