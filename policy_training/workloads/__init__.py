"""Prompts for training and evaluating policies: generated from a seed, or read from a file."""

from draftpick.policy_training.workloads.jsonl import read_jsonl
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

__all__ = [
    "GENERATED",
    "KINDS",
    "SAMPLED_TEMPERATURE",
    "Message",
    "Prompt",
    "generate",
    "interleaved",
    "read_jsonl",
    "reword",
]
