"""An untrained small drafter for a target: its tokenizer, rope and key-value heads, and reduced embeddings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Size:
    """Shape of the drafter. Most parameters of a small drafter are its embedding: vocabulary x hidden."""

    hidden: int = 168
    layers: int = 2
    intermediate: int = 672


def make_drafter(target: Path, size: Size) -> Any:
    """Create a Llama of that size; its tied embedding is the target's, projected on the leading principal directions.

    Raises ValueError if it is wider than the target.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    base = AutoConfig.from_pretrained(target)
    if size.hidden > base.hidden_size:
        raise ValueError(f"hidden size {size.hidden} exceeds the target's {base.hidden_size}: reduce it")
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
