"""Self-drafting (Draft & Verify, arXiv 2309.08168): the target without some of its sub-layers, as a draft model.

The search over attention and MLP sub-layers maximises tokens/s: acceptance is replayed on the target's own answers
(exact for greedy decoding, one prefill for all draft lengths), step times are measured. A layer without both sub-layers
is removed from the checkpoint and takes no time; a single sub-layer is zeroed, since vLLM's Llama needs both, and takes
the same time as before.
"""

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from draftpick.engines.drafters.replay import model_matches, replay_matches
from draftpick.engines.drafters.training.responses import Responses

ProgressCallback = Callable[[int, "Trial", "Trial"], None]
"""Called with (trial number, trial, best trial so far)."""

_TIMED_STEPS = 6


@dataclass(frozen=True, slots=True)
class Trial:
    """One choice of sub-layers (True: kept). `draft_cost`: draft step time / target step time; `speedup`: over the
    baseline."""

    attention: tuple[bool, ...]
    mlp: tuple[bool, ...]
    num_speculative_tokens: int
    acceptance_length: float
    draft_cost: float
    speedup: float

    @property
    def layers(self) -> int:
        """Number of remaining layers."""
        return sum(a or m for a, m in zip(self.attention, self.mlp, strict=True))


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """Search budget and data."""

    trials: int = 60
    lengths: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    num_answers: int = 8
    seed: int = 0


def search(
    target: Path, answers: Responses, options: SearchOptions, progress: ProgressCallback
) -> tuple[Trial, list[Trial]]:
    """Return (best choice, all trials), found by optuna's TPE over 2 x layers binary choices."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    model = _load(target)
    few = range(min(options.num_answers, len(answers)))
    sequences = [answers.tokens[answers.starts[i] : answers.starts[i + 1]] for i in few]
    texts = [(s[: answers.answer_at[i]], s[answers.answer_at[i] :]) for i, s in zip(few, sequences, strict=True)]
    clock = _Clock(model, texts[0][0])
    depth = model.config.num_hidden_layers
    tried: list[Trial] = []

    def objective(trial: Any) -> float:
        keep = [[trial.suggest_categorical(f"{part}.{i}", [True, False]) for i in range(depth)] for part in "am"]
        tried.append(_try(model, keep[0], keep[1], texts, clock, options.lengths))
        progress(len(tried), tried[-1], max(tried, key=lambda t: t.speedup))
        return tried[-1].speedup

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=options.seed))
    for keep in _first_guesses(depth):
        study.enqueue_trial({f"{part}.{i}": keep[i] for part in "am" for i in range(depth)})
    study.optimize(objective, n_trials=options.trials)
    return max(tried, key=lambda t: t.speedup), tried


def export(target: Path, choice: Trial, out: Path) -> None:
    """Write the chosen sub-layers as a checkpoint that vLLM serves as `draft_model`."""
    cut = drop_layers(_load(target), choice.attention, choice.mlp)
    cut.save_pretrained(out)
    (out / "layer-skip.json").write_text(json.dumps(asdict(choice)) + "\n")


def drop_layers(model: Any, attention: Sequence[bool], mlp: Sequence[bool]) -> Any:
    """Return a copy of a Llama-family model without the sub-layers that are False. The weights are shared."""
    layers = model.model.layers
    cut = copy.copy(model)
    cut._modules = dict(model._modules)
    cut.model = copy.copy(model.model)
    cut.model._modules = dict(model.model._modules)
    kept = []
    for layer, with_attention, with_mlp in zip(layers, attention, mlp, strict=True):
        if not (with_attention or with_mlp):
            continue
        one = layer
        if not (with_attention and with_mlp):
            one = copy.deepcopy(layer)
            if not with_attention:
                one.self_attn.o_proj.weight.data.zero_()
            if not with_mlp:
                one.mlp.down_proj.weight.data.zero_()
        kept.append((one, one.self_attn.layer_idx))
    cut.model._modules["layers"] = torch.nn.ModuleList([_at(layer, i) for i, (layer, _) in enumerate(kept)])
    cut.config = copy.deepcopy(model.config)
    cut.config.num_hidden_layers = len(kept)
    if getattr(cut.config, "layer_types", None):
        cut.config.layer_types = [model.config.layer_types[place] for _, place in kept]
    cut.model.config = cut.config
    return cut


def _at(layer: Any, index: int) -> Any:
    """Return a copy of the layer with its new index in the cache."""
    if layer.self_attn.layer_idx == index:
        return layer
    moved = copy.copy(layer)
    moved._modules = dict(layer._modules)
    moved.self_attn = copy.copy(layer.self_attn)
    moved.self_attn.layer_idx = index
    return moved


def _load(target: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16).eval()


def _first_guesses(depth: int) -> list[list[bool]]:
    """Initial trials: layers dropped at regular intervals, or the second half."""
    return [
        [i % 2 == 0 or i in (0, depth - 1) for i in range(depth)],
        [i % 3 != 1 or i in (0, depth - 1) for i in range(depth)],
        [i < depth // 2 or i == depth - 1 for i in range(depth)],
        [i % 5 != 2 for i in range(depth)],
    ]


def _try(
    model: Any, attention: list[bool], mlp: list[bool], texts: Sequence[Any], clock: "_Clock", lengths: Sequence[int]
) -> Trial:
    trial = Trial(tuple(attention), tuple(mlp), lengths[0], 1.0, 1.0, 0.0)
    if trial.layers == 0:
        return trial
    cut = drop_layers(model, attention, mlp)
    matches = [model_matches(cut, prompt, answer) for prompt, answer in texts]
    cost = clock.step_s(cut) / clock.plain_s
    best = trial
    for k in lengths:
        tau = float(np.mean([replay_matches(m, k).acceptance_length for m in matches]))
        speedup = tau / (k * cost + clock.verify_cost(k))
        if speedup > best.speedup:
            best = replace(trial, num_speculative_tokens=k, acceptance_length=tau, draft_cost=cost, speedup=speedup)
    return best


class _Clock:
    """Measured times of decoding steps with a cache: target, reduced model, and verification of k drafted tokens."""

    def __init__(self, model: Any, prompt: Any) -> None:
        self._prompt = torch.from_numpy(np.asarray(prompt, np.int64))[None]
        self.plain_s = self.step_s(model)
        self._verify = {n: self._timed(model, n) for n in (1, 2, 4, 8, 12)}

    def step_s(self, model: Any) -> float:
        """Return the seconds of one step of one token."""
        return self._timed(model, 1)

    def verify_cost(self, k: int) -> float:
        """Return the time of a step of k + 1 tokens over that of one token."""
        sizes = sorted(self._verify)
        return float(np.interp(k + 1, sizes, [self._verify[n] for n in sizes]) / self._verify[1])

    @torch.inference_mode()
    def _timed(self, model: Any, tokens: int) -> float:
        from transformers import DynamicCache

        cache = DynamicCache()
        model(input_ids=self._prompt, past_key_values=cache, use_cache=True)
        step = self._prompt[:, :1].expand(1, tokens).contiguous()
        took = []
        for _ in range(_TIMED_STEPS):
            began = time.perf_counter()
            model(input_ids=step, past_key_values=cache, use_cache=True)
            took.append(time.perf_counter() - began)
        return float(np.median(took[1:]))
