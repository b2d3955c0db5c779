"""Prompts to train and judge policies on: generated from a seed, or read from a file."""

from policy_training.workloads.jsonl import read_jsonl
from policy_training.workloads.prompts import KINDS, SAMPLED_TEMPERATURE, Prompt, generate, interleaved

__all__ = ["KINDS", "SAMPLED_TEMPERATURE", "Prompt", "generate", "interleaved", "read_jsonl"]
