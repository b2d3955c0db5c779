"""Prompts for training and evaluating policies: generated from a seed, or read from a file."""

from draftpick.policy_training.workloads.files import PromptFile, read_file
from draftpick.policy_training.workloads.prompts import (
    GENERATED,
    KINDS,
    SAMPLED_TEMPERATURE,
    Message,
    Prompt,
    generate,
    interleaved,
)
from draftpick.policy_training.workloads.rewording import reword
from draftpick.policy_training.workloads.sources import PromptSource, Selection, prompts_of

__all__ = [
    "GENERATED",
    "KINDS",
    "SAMPLED_TEMPERATURE",
    "Message",
    "Prompt",
    "PromptFile",
    "PromptSource",
    "Selection",
    "generate",
    "interleaved",
    "prompts_of",
    "read_file",
    "reword",
]
