"""An untrained small drafter that fits a target: its tokenizer, rope and key-value heads, embeddings from its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Size:
    """Shape of the drafter. Most of a small drafter is its embedding: vocabulary times hidden."""

    hidden: int = 168
    layers: int = 2
    intermediate: int = 672


def make_drafter(target: Path, size: Size) -> Any:
    """A Llama of that size; its tied embedding is the target's on its leading principal directions.

    Raises ValueError for one wider than the target.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    base = AutoConfig.from_pretrained(target)
    if size.hidden > base.hidden_size:
        raise ValueError(f"hidden size {size.hidden}: the target itself has {base.hidden_size}")
    config = LlamaConfig(
        vocab_size=base.vocab_size,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=base.num_key_value_heads,
        num_key_value_heads=base.num_key_value_heads,
        head_dim=base.head_dim,
        max_position_embeddings=base.max_position_embeddings,
        rms_norm_eps=1e-5,
        rope_parameters=base.rope_parameters,
        tie_word_embeddings=True,
        bos_token_id=base.bos_token_id,
        eos_token_id=base.eos_token_id,
        pad_token_id=base.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    rows = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).get_input_embeddings().weight.detach()
    centred = rows - rows.mean(0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -size.hidden :]
    projected = centred @ directions
    model.get_input_embeddings().weight.data.copy_(projected * (0.05 / projected.std()))
    return model
