"""Counterfactual replay: the acceptance of a drafter on a known answer of the target.

Greedy decoding gives the same answer with every drafter, so one answer labels every drafter and every draft length
without traffic. A token-only drafter is replayed directly; a head needs a prefill of the target.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from draftpick.engines.config import Drafter as Configured
from draftpick.engines.drafters.acceptance import DrafterReplay
from draftpick.engines.drafters.prompt_lookup import NgramDrafter
from draftpick.engines.drafters.proposer import Drafter, Proposer
from draftpick.engines.drafters.request_tracking import Tokens
from draftpick.engines.models.cpu import computes_bfloat16
from draftpick.engines.models.paths import drafter_model


def replay_drafter(drafter: Drafter, prompt: Tokens, answer: Tokens) -> DrafterReplay:
    """Run a drafter as the engine would, on the engine's token ids `prompt` [p] and `answer` [n]."""
    tokens = np.concatenate([prompt, answer]).astype(np.int32)
    done, drafted, accepted = len(prompt) + 1, [], []
    state = drafter.start(tokens[:done])
    while done < len(tokens):
        draft, _ = drafter.draft(state, tokens[:done], len(tokens) - done)
        right = count_agreed(draft, tokens[done:])
        drafted.append(len(draft))
        accepted.append(min(right, len(tokens) - done - 1))
        new = accepted[-1] + 1
        done += new
        drafter.learn(state, tokens[:done], new)
    drafter.end(state)
    return DrafterReplay(np.asarray(drafted, np.int64), np.asarray(accepted, np.int64))


def replay_matches(matches: npt.NDArray[np.bool_], k: int) -> DrafterReplay:
    """Replay a model drafter from `matches` [n]: does its greedy token equal the target's at this position?

    A run of r <= k matches gives r + 1 tokens per step. One prefill of the drafter labels every k.
    """
    done, accepted = 1, []
    while done < len(matches):
        run = matches[done : done + k]
        right = int(run.argmin()) if not run.all() else len(run)
        accepted.append(min(right, len(matches) - done - 1))
        done += accepted[-1] + 1
    return DrafterReplay(np.full(len(accepted), k, np.int64), np.asarray(accepted, np.int64))


def model_matches(model: Any, prompt: Tokens, answer: Tokens) -> npt.NDArray[np.bool_]:
    """Compare a causal language model's greedy next tokens with the answer [n]; one forward pass."""
    import torch

    ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
    with torch.inference_mode():
        predicted = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].argmax(-1)
    return np.asarray((predicted == ids[0, len(prompt) :]).numpy(), np.bool_)


LENGTHS = (1, 2, 3, 4, 6, 8)
"""Draft lengths to replay in addition to the engine's own."""


def replayer(
    drafter: Configured, lengths: Sequence[int], target: str
) -> Callable[[Tokens, Tokens], dict[int, DrafterReplay]]:
    """Return a function from (prompt, answer) to replays by draft length, for a configured drafter of `target`.

    Raises ValueError for a method that is not `replayable`.
    """
    if drafter.spec.weights == "causal_lm":
        return _model_replayer(drafter_model(drafter) or "", lengths)
    if drafter.spec.weights == "eagle3":
        return _head_replayer(drafter_model(drafter) or "", lengths, target)
    own = {k: model_free_drafter(drafter, k) for k in lengths}
    return lambda prompt, answer: {k: replay_drafter(one, prompt, answer) for k, one in own.items()}


def model_free_drafter(drafter: Configured, k: int) -> Drafter:
    """Build the drafter of an engine with this configuration, at draft length k. Raises ValueError otherwise."""
    if not (drafter.spec.replayable and drafter.spec.model_free):
        raise ValueError(f"method {drafter.method!r} is not replayable")
    if drafter.method == "ngram":
        return NgramDrafter.as_in_vllm(k, drafter.model_extra or {})
    if drafter.method == "suffix" and (drafter.model_extra or {}).get("suffix_decoding_max_cached_requests") != 0:
        raise ValueError("suffix decoding with a cache across requests is not replayable: set max_cached_requests to 0")
    assert drafter.spec.class_path is not None
    module, name = drafter.spec.class_path.rsplit(".", 1)
    proposer: type[Proposer] = getattr(import_module(module), name)
    return proposer.build(proposer.options.model_validate(drafter.model_extra or {}), k)


def _model_replayer(source: str, lengths: Sequence[int]) -> Callable[[Tokens, Tokens], dict[int, DrafterReplay]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=compute_dtype()).eval()

    def replay(prompt: Tokens, answer: Tokens) -> dict[int, DrafterReplay]:
        matches = model_matches(model, prompt, answer)
        return {k: replay_matches(matches, k) for k in lengths}

    return replay


def compute_dtype() -> Any:
    """bfloat16 if this CPU supports it natively, else float32."""
    import torch

    return torch.bfloat16 if computes_bfloat16() else torch.float32


class TargetStates:
    """The target and its layer inputs for the most recent sequence, shared by all heads of a fleet."""

    def __init__(self, target: str) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(target, dtype=compute_dtype()).eval()
        self._last: tuple[bytes, tuple[int, ...]] | None = None
        self._features: Any = None

    def features(self, ids: Any, layers: Sequence[int]) -> Any:
        """Return the inputs of these layers, concatenated [t, 3 h], for token ids [t]."""
        from draftpick.engines.drafters.training.eagle3 import target_features

        asked = (ids.numpy().tobytes(), tuple(layers))
        if asked != self._last:
            self._features, self._last = target_features(self.model, ids[None], layers)[0], asked
        return self._features


@lru_cache(maxsize=1)
def target_states(target: str) -> TargetStates:
    """Load the target at this path once and return its states."""
    return TargetStates(target)


def _head_replayer(
    source: str, lengths: Sequence[int], target: str
) -> Callable[[Tokens, Tokens], dict[int, DrafterReplay]]:
    import torch

    from draftpick.engines.drafters.training.eagle3 import chain_matches, load_head, replay_chains

    states = target_states(target)
    head, embed = load_head(Path(source), states.model), states.model.get_input_embeddings()

    def replay(prompt: Tokens, answer: Tokens) -> dict[int, DrafterReplay]:
        ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))
        features = states.features(ids, head.features)
        matches = chain_matches(head, embed, ids, features, len(prompt), max(lengths))
        return {k: replay_chains(matches[:, :k]) for k in lengths}

    return replay


def count_agreed(draft: Sequence[int] | Tokens, target_tokens: Tokens) -> int:
    seen = min(len(draft), len(target_tokens))
    differ = np.flatnonzero(np.asarray(draft[:seen]) != target_tokens[:seen])
    return int(differ[0]) if len(differ) else seen
