"""What a drafter says on its own, with nobody to correct it: the seed paper likens that to the target's answer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from draftpick.engines.config import Drafter as Configured
from draftpick.engines.drafters.proposer import Drafter
from draftpick.engines.drafters.replay import compute_dtype, model_free_drafter, target_states
from draftpick.engines.drafters.request_tracking import Tokens
from draftpick.engines.models.paths import drafter_model

StandaloneGenerator = Callable[[Tokens, int], Tokens]
"""From a prompt's token ids and a length: at most so many tokens of its own answer, greedily."""


def standalone_generator(drafter: Configured, target: str) -> StandaloneGenerator:
    """The speaker of a configured drafter of `target`. Raises ValueError for a method that cannot speak alone."""
    if drafter.spec.weights == "causal_lm":
        return _model(drafter_model(drafter) or "")
    if drafter.spec.weights == "eagle3":
        return _head(drafter_model(drafter) or "", target)
    made = model_free_drafter(drafter, 8)
    return lambda prompt, length: _generate_model_free(made, prompt, length)


def _generate_model_free(drafter: Drafter, prompt: Tokens, length: int) -> Tokens:
    """A drafter that sees tokens alone, on its own words; it ends where it has nothing to propose."""
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

    def say(prompt: Tokens, length: int) -> Tokens:
        ids = torch.from_numpy(np.asarray(prompt, np.int64))[None]
        with torch.inference_mode():
            said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False)
        return np.asarray(said[0, ids.shape[1] :].numpy(), np.int32)

    return say


def _head(source: str, target: str) -> StandaloneGenerator:
    import torch

    from draftpick.engines.drafters.training.eagle3 import generate_standalone, load_head

    states = target_states(target)
    head, embed = load_head(Path(source), states.model), states.model.get_input_embeddings()

    def say(prompt: Tokens, length: int) -> Tokens:
        ids = torch.from_numpy(np.asarray(prompt, np.int64))
        return np.asarray(generate_standalone(head, embed, ids, states.features(ids, head.features), length), np.int32)

    return say
