"""A tiny random Llama and its own greedy answers: what drafters can be trained on in a second."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from engines.drafters.answers import Answers

VOCABULARY = 64


def write_target(path: Path, layers: int = 1) -> Path:
    """A checkpoint of random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, tie_word_embeddings=True, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


def greedy_answers(target: Path, n: int = 60, prompt_tokens: int = 6, new_tokens: int = 12) -> Answers:
    """Answers to random prompts."""
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16)
    prompts = torch.randint(0, VOCABULARY, (n, prompt_tokens), generator=torch.Generator().manual_seed(1))
    rows = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=new_tokens, do_sample=False)
    flat = rows.numpy().astype(np.int32).reshape(-1)
    length = prompt_tokens + new_tokens
    return Answers(flat, np.arange(n + 1) * length, np.full(n, prompt_tokens, np.int32))
