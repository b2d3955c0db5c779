"""A tiny random Llama and its own greedy answers: what drafters can be trained on in a second."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from draftpick.engines.drafters.training.eagle3 import export, make_head
from draftpick.engines.drafters.training.responses import Responses

VOCABULARY = 64


def load_model(path: Path, **options: Any) -> Any:
    """The model of a checkpoint."""
    from transformers import AutoModelForCausalLM  # here: to import it takes seconds

    return AutoModelForCausalLM.from_pretrained(path, **options)


def write_target(path: Path, layers: int = 1, head_dim: int = 16, spread: float = 1) -> Path:
    """A checkpoint of random weights. The larger `spread`, the further its probabilities are from even."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=2 * head_dim, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, head_dim=head_dim, tie_word_embeddings=True, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.get_input_embeddings().weight.data.mul_(spread)
    model.to(torch.bfloat16).save_pretrained(path)
    return path


def write_noisy_copy(target: Path, path: Path, noise: float = 0.3) -> None:
    """A draft model: the target with noise on its embedding."""
    torch.manual_seed(1)
    model = load_model(target, dtype=torch.float32)
    rows = model.get_input_embeddings().weight.data
    rows.add_(noise * rows.std() * torch.randn_like(rows))
    model.save_pretrained(path)


def write_head(target: Path, path: Path, parallel: bool, seed: int = 2) -> None:
    """An untrained EAGLE-3 head that can draft every second token."""
    torch.manual_seed(seed)
    model = load_model(target, dtype=torch.float32)
    export(make_head(model, torch.arange(0, VOCABULARY, 2), parallel), path)


def greedy_answers(target: Path, n: int = 60, prompt_tokens: int = 6, new_tokens: int = 12) -> Responses:
    """Answers to random prompts."""
    model = load_model(target, dtype=torch.bfloat16)
    prompts = torch.randint(0, VOCABULARY, (n, prompt_tokens), generator=torch.Generator().manual_seed(1))
    rows = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=new_tokens, do_sample=False)
    flat = rows.numpy().astype(np.int32).reshape(-1)
    length = prompt_tokens + new_tokens
    return Responses(flat, np.arange(n + 1) * length, np.full(n, prompt_tokens, np.int32))
