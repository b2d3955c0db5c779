"""Greedy generation by a drafter alone, without verification; the seed paper compares it with the target's answer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from draftpick.engines.config import Drafter as Configured
from draftpick.engines.drafters.proposer import Drafter
from draftpick.engines.drafters.replay import compute_dtype, model_free_drafter, target_states
from draftpick.engines.drafters.request_tracking import Tokens
from draftpick.engines.models.paths import drafter_model

StandaloneGenerator = Callable[[Tokens, int], Tokens]
"""(prompt token ids, maximum length) -> the drafter's own greedy answer."""


def standalone_generator(drafter: Configured, target: str) -> StandaloneGenerator:
    """Return the generator of a configured drafter of `target`. Raises ValueError for a method that cannot generate
    alone."""
    if drafter.spec.weights == "causal_lm":
        return _model(drafter_model(drafter) or "")
    if drafter.spec.weights == "eagle3":
        return _head(drafter_model(drafter) or "", target)
    made = model_free_drafter(drafter, 8)
    return lambda prompt, length: _generate_model_free(made, prompt, length)


def _generate_model_free(drafter: Drafter, prompt: Tokens, length: int) -> Tokens:
    """Extend the prompt with a token-only drafter's own drafts until it proposes nothing."""
    tokens = np.asarray(prompt, np.int32)
    state = drafter.start(tokens)
    while (left := len(prompt) + length - len(tokens)) > 0:
        draft, _ = drafter.draft(state, tokens, left)
        if not len(draft):
            break
        tokens = np.concatenate([tokens, np.asarray(draft[:left], np.int32)])
        drafter.learn(state, tokens, len(draft[:left]))
    drafter.end(state)
    return tokens[len(prompt) :]


def _model(source: str) -> StandaloneGenerator:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=compute_dtype()).eval()

    def generate(prompt: Tokens, length: int) -> Tokens:
        ids = torch.from_numpy(np.asarray(prompt, np.int64))[None]
        with torch.inference_mode():
            generated = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False)
        return np.asarray(generated[0, ids.shape[1] :].numpy(), np.int32)

    return generate


def _head(source: str, target: str) -> StandaloneGenerator:
    import torch

    from draftpick.engines.drafters.training.eagle3 import generate_standalone, load_head

    states = target_states(target)
    head, embed = load_head(Path(source), states.model), states.model.get_input_embeddings()

    def generate(prompt: Tokens, length: int) -> Tokens:
        ids = torch.from_numpy(np.asarray(prompt, np.int64))
        return np.asarray(generate_standalone(head, embed, ids, states.features(ids, head.features), length), np.int32)

    return generate
