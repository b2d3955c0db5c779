"""EAGLE-3 heads (arXiv 2503.01840): one layer on the target's hidden states, with a reduced draft vocabulary.

At position t a head reads the target's features of token t and the embedding of token t + 1, and drafts token t + 2.
Further steps read the head's own hidden state instead of the features; training unrolls those steps too (training-time
test), so that acceptance does not drop after the first token. A parallel head (P-EAGLE) reads a learned mask state and
a mask token for unknown positions, and drafts all tokens in one pass.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from draftpick.engines.drafters.acceptance import DrafterReplay
from draftpick.engines.drafters.training.responses import Responses
from draftpick.engines.drafters.training.target_outputs import TargetOutputs
from draftpick.engines.drafters.training.trainer import (
    Batch,
    Batches,
    FitOptions,
    Indices,
    ProgressCallback,
    fit,
    identity_of,
    split,
)

MASK_TOKEN = 0
"""Mask token for an unknown position."""
STEP_WEIGHT = 0.8
"""Loss discount per further step, which is reached only if all earlier steps are right."""


@dataclass(frozen=True, slots=True)
class EagleOptions:
    """Draft vocabulary size, unrolled training steps, parallel drafting, and training settings.

    `start`: initial head; its draft vocabulary may differ.
    """

    draft_vocab_size: int = 4096
    steps: int = 3
    parallel: bool = False
    start: Path | None = None
    fit: FitOptions = field(default_factory=lambda: FitOptions(learning_rate=6e-4, batch_tokens=4096))


class EagleHead(nn.Module):
    """The head. Parameter names are those of vLLM's `LlamaForCausalLMEagle3` checkpoints.

    `d2t` [d]: target token minus draft token, by draft token; `features`: the target layers whose inputs it reads.
    """

    d2t: torch.Tensor
    to_draft: torch.Tensor

    def __init__(self, config: Any, vocabulary: torch.Tensor, parallel: bool = False) -> None:
        super().__init__()
        self.config = config
        self.parallel = parallel
        hidden, size = config.hidden_size, len(vocabulary)
        self.features = feature_layers(config.num_hidden_layers)
        self.fc = nn.Linear(len(self.features) * hidden, hidden, bias=False)
        self.midlayer = _Layer(config)
        self.norm = _Norm(hidden, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(hidden, size, bias=False)
        self.register_buffer("d2t", vocabulary - torch.arange(size))
        known = torch.zeros(config.vocab_size, dtype=torch.bool)
        known[vocabulary] = True
        self.register_buffer("t2d", known)
        to_draft = torch.full((config.vocab_size,), -1)
        to_draft[vocabulary] = torch.arange(size)
        self.register_buffer("to_draft", to_draft, persistent=False)
        if parallel:
            self.mask_hidden = nn.Parameter(torch.zeros(self.fc.in_features))

    def forward(
        self, embed: nn.Module, ids: torch.Tensor, features: torch.Tensor, steps: int, since: int = 0
    ) -> list[torch.Tensor]:
        """Return hidden states [b, t - 1 - since, h] of each step, the input of `logits`.

        Takes the target's embedding, token ids [b, t] and features [b, t, 3 h]; positions before `since` are skipped.
        """
        places = ids.shape[1] - 1
        hidden, memory = self.fc(features[:, :places]), _Memory()
        states = []
        for step in range(steps):
            # No token exists beyond the end; drafts at these positions are never read.
            known = functional.pad(ids[:, 1 + step :], (0, step), value=MASK_TOKEN)
            if self.parallel and step > 0:
                known = torch.full_like(known, MASK_TOKEN)
                hidden = self.fc(self.mask_hidden).expand_as(hidden)
            hidden = self.midlayer(embed(known[:, -hidden.shape[1] :]), hidden, step, memory)[:, 0 if step else since :]
            states.append(hidden)
        return states

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return draft logits [..., d] of hidden states [..., h]."""
        out: torch.Tensor = self.lm_head(self.norm(states))
        return out


class _Memory:
    """Keys and values: of all positions for the first step, of the own position only for each further step."""

    def __init__(self) -> None:
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []


class _Layer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        eps = config.rms_norm_eps
        self.input_layernorm = _Norm(config.hidden_size, eps=eps)
        self.hidden_norm = _Norm(config.hidden_size, eps=eps)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = _Norm(config.hidden_size, eps=eps)
        self.mlp = _MLP(config)

    def forward(self, tokens: torch.Tensor, hidden: torch.Tensor, step: int, memory: _Memory) -> torch.Tensor:
        both = torch.cat([self.input_layernorm(tokens), self.hidden_norm(hidden)], dim=-1)
        hidden = hidden + self.self_attn(both, step, memory)
        out: torch.Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out


class _Attention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        self.heads, self.groups, self.size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        wide = 2 * config.hidden_size
        self.q_proj = nn.Linear(wide, self.heads * self.size, bias=False)
        self.k_proj = nn.Linear(wide, self.groups * self.size, bias=False)
        self.v_proj = nn.Linear(wide, self.groups * self.size, bias=False)
        self.o_proj = nn.Linear(self.heads * self.size, config.hidden_size, bias=False)
        self.rotary = LlamaRotaryEmbedding(config)

    def forward(self, x: torch.Tensor, step: int, memory: _Memory) -> torch.Tensor:
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        b, t, _ = x.shape
        q, k, v = (
            project(x).view(b, t, -1, self.size).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        # Steps after the first may skip positions at the beginning.
        earlier = memory.keys[0].shape[2] - t if step else 0
        positions = torch.arange(earlier + step, earlier + step + t, device=x.device)[None]
        q, k = apply_rotary_pos_emb(q, k, *self.rotary(x, positions))
        memory.keys.append(k.repeat_interleave(self.heads // self.groups, 1))
        memory.values.append(v.repeat_interleave(self.heads // self.groups, 1))
        scores = q @ memory.keys[0].transpose(2, 3) * self.size**-0.5
        later = torch.ones(t, earlier + t, dtype=torch.bool, device=x.device).triu(1 + earlier)
        scores = scores.masked_fill(later, float("-inf"))
        own = [(q * key).sum(-1, keepdim=True) * self.size**-0.5 for key in memory.keys[1:]]
        weights = torch.cat([scores, *own], dim=-1).softmax(-1)
        mixed = weights[..., : earlier + t] @ memory.values[0]
        for i, value in enumerate(memory.values[1:]):
            mixed = mixed + weights[..., earlier + t + i : earlier + t + i + 1] * value
        out: torch.Tensor = self.o_proj(mixed.transpose(1, 2).reshape(b, t, -1))
        return out


class _Norm(nn.RMSNorm):
    """RMSNorm in float32 for any input type."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float())


class _MLP(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


def feature_layers(num_layers: int) -> tuple[int, int, int]:
    """The target layers whose inputs a head reads: low, middle, high. Raises ValueError if these coincide."""
    if num_layers < 7:
        raise ValueError(f"a target of {num_layers} layers is too shallow for an EAGLE-3 head: it needs at least 7")
    return 2, num_layers // 2, num_layers - 3


def draft_vocabulary(answers: Responses, size: int) -> torch.Tensor:
    """Return the `size` most frequent tokens of the answers, ascending."""
    tokens, counts = np.unique(np.concatenate(answers.answer_tokens()), return_counts=True)
    return torch.from_numpy(np.sort(tokens[np.argsort(-counts, kind="stable")][:size]).astype(np.int64))


def make_head(target: Any, vocabulary: torch.Tensor, parallel: bool = False) -> EagleHead:
    """Create an untrained head, initialised from the target's last layer on its highest features."""
    head = EagleHead(target.config, vocabulary, parallel)
    last, hidden = target.model.layers[-1], target.config.hidden_size
    with torch.no_grad():
        head.fc.weight.mul_(0.1)
        head.fc.weight[:, -hidden:] += torch.eye(hidden)
        for name in ("q_proj", "k_proj", "v_proj"):
            ours = getattr(head.midlayer.self_attn, name).weight
            ours.mul_(0.1)
            ours[:, hidden:] = getattr(last.self_attn, name).weight.float()
        head.midlayer.self_attn.o_proj.weight.copy_(last.self_attn.o_proj.weight)
        head.midlayer.hidden_norm.weight.copy_(last.input_layernorm.weight)
        head.midlayer.post_attention_layernorm.weight.copy_(last.post_attention_layernorm.weight)
        for name in ("gate_proj", "up_proj", "down_proj"):
            getattr(head.midlayer.mlp, name).weight.copy_(getattr(last.mlp, name).weight)
        head.norm.weight.copy_(target.model.norm.weight)
        head.lm_head.weight.copy_(target.lm_head.weight[vocabulary])
    return head


@torch.no_grad()
def copy_weights(start: EagleHead, head: EagleHead) -> None:
    """Initialise from another head of the same target; draft tokens unknown to it keep their rows."""
    own = ("lm_head.weight", "d2t", "t2d")
    head.load_state_dict({name: t for name, t in start.state_dict().items() if name not in own}, strict=False)
    rows = start.to_draft[head.d2t + torch.arange(len(head.d2t))]
    head.lm_head.weight[rows >= 0] = start.lm_head.weight[rows[rows >= 0]]


@torch.no_grad()
def target_features(target: Any, ids: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
    """Return the inputs of these target layers, concatenated [b, t, 3 h]."""
    states = target.model(input_ids=ids, output_hidden_states=True).hidden_states
    return torch.cat([states[i] for i in layers], dim=-1)


def train(
    target_path: Path,
    answers: Responses,
    target_outputs: TargetOutputs,
    out: Path,
    options: EagleOptions,
    progress: ProgressCallback,
) -> dict[str, float]:
    """Train a head on the target's answers and write it in vLLM's format; resumes an interrupted run.

    `target_outputs` must contain the target's `feature_layers`. Returns on held-out answers `survival/i`, the share of
    drafts whose first i tokens are right, and `block_efficiency`.
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(options.fit.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    target = AutoModelForCausalLM.from_pretrained(target_path, dtype=torch.bfloat16)
    if target_outputs.width != len(feature_layers(target.config.num_hidden_layers)) * target.config.hidden_size:
        raise ValueError(
            "target_outputs lacks the hidden states of the head's feature layers: collect them with `layers`"
        )
    head = make_head(target, draft_vocabulary(answers, options.draft_vocab_size), options.parallel)
    if options.start is not None:
        copy_weights(load_head(options.start, target), head)
    head = head.to(device)
    embed = target.get_input_embeddings().to(device).requires_grad_(False)
    held_out, fitted = split(len(answers), options.fit.seed)
    batches = Batches(answers, target_outputs, options.fit.batch_tokens, device)

    def loss_of(batch: Batch) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            return _loss(head, batch, head(embed, batch.ids, batch.features, options.steps))

    def check() -> float:
        return evaluate(head, embed, batches, held_out, options.steps)["block_efficiency"]

    resume = out / "resume"
    fit(head, batches, fitted, loss_of, check, options.fit, resume, identity_of(options, answers), progress)
    result = evaluate(head, embed, batches, held_out, options.steps)
    export(head, out)
    shutil.rmtree(resume)
    return {**result, "parameters": float(sum(p.numel() for p in head.parameters()))}


def _loss(head: EagleHead, batch: Batch, states: Sequence[torch.Tensor]) -> torch.Tensor:
    """Cross-entropy to the target's probabilities, restricted to tokens of the draft vocabulary."""
    rows = torch.full(batch.is_answer.shape, -1, device=batch.ids.device)
    rows[batch.is_answer] = torch.arange(len(batch.p), device=batch.ids.device)
    draft = head.to_draft[batch.top]
    p = torch.where(draft >= 0, batch.p, 0)
    share = p.sum(1)
    total, weights = batch.p.new_zeros(()), 0.0
    for step, one in enumerate(states):
        # Step s at position t drafts the token after position t + 1 + s.
        row = rows[:, 1 + step :]
        scored = row >= 0
        row = row[scored]
        known = share[row] > 0.01
        row = row[known]
        log_q = head.logits(one[:, : scored.shape[1]][scored][known]).float().log_softmax(-1)
        log_p = log_q.gather(1, draft[row].clamp_min(0))
        total = total - STEP_WEIGHT**step * ((p[row] * log_p).sum(1) / share[row]).mean()
        weights += STEP_WEIGHT**step
    return total / weights


@torch.no_grad()
def chain_matches(
    head: EagleHead, embed: Any, ids: torch.Tensor, features: torch.Tensor, answer_at: int, steps: int
) -> Indices:
    """Return whether step s from position t drafts the right token [n - 1, steps], from the last prompt token on.

    For one sequence of token ids [t] and the target's features [t, 3 h].
    """
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=features.dtype == torch.bfloat16):
        states = head(embed, ids[None], features[None], steps, since=answer_at - 1)
        drafts = [head.logits(one[0]).argmax(-1) for one in states]
    matches = torch.zeros(len(ids) - answer_at - 1, steps, dtype=torch.bool)
    for step, drafted in enumerate(drafts):
        came = ids[answer_at + 1 + step :]
        matches[: len(came), step] = ((drafted + head.d2t[drafted])[: len(came)] == came).cpu()
    return matches.numpy()


@torch.no_grad()
def generate_standalone(
    head: EagleHead, embed: Any, ids: torch.Tensor, features: torch.Tensor, steps: int
) -> list[int]:
    """Return a chained head's unverified draft after a prompt with token ids [t] and features [t, 3 h]."""
    hidden, known, memory = head.fc(features[None, :-1].float()), ids[None, 1:].clone(), _Memory()
    generated = []
    for step in range(steps):
        # Only the first step uses all positions: later ones attend to the last position only.
        hidden = head.midlayer(embed(known).float(), hidden, step, memory)
        drafted = head.logits(hidden[0, -1]).argmax()
        known[0, -1] = drafted + head.d2t[drafted]
        generated.append(int(known[0, -1]))
    return generated


def replay_chains(matches: Indices) -> DrafterReplay:
    """Return the decoding steps of an answer with draft matches [n - 1, k]."""
    k = matches.shape[1]
    runs = np.where(matches.all(1), k, matches.argmin(1))
    done, accepted = 0, []
    while done < len(runs):
        accepted.append(min(int(runs[done]), len(runs) - done - 1))
        done += accepted[-1] + 1
    return DrafterReplay(np.full(len(accepted), k, np.int64), np.asarray(accepted, np.int64))


def evaluate(head: EagleHead, embed: Any, batches: Batches, indices: Indices, steps: int) -> dict[str, float]:
    """Return survival by draft length and block efficiency on the chosen answers."""
    every, taus = [], []
    for i in indices.tolist():
        batch = batches.batch([i])
        if batch.is_answer.sum() < 2:
            continue
        answer_at = int(batches.answers.answer_at[i])
        matches = chain_matches(head, embed, batch.ids[0], batch.features[0], answer_at, steps)
        every.append(matches[: max(0, len(matches) - steps + 1)])
        taus.append(replay_chains(matches).acceptance_length)
    if not sum(map(len, every)):
        raise ValueError(f"the held-out answers are too short to evaluate drafts of {steps} tokens")
    survival = np.logical_and.accumulate(np.concatenate(every), axis=1).mean(0)
    named = {f"survival/{i}": float(share) for i, share in enumerate(survival, start=1)}
    return {**named, "block_efficiency": float(np.mean(taus))}


def export(head: EagleHead, out: Path) -> None:
    """Write the head as vLLM reads it: `config.json` and bfloat16 weights, without the target's embedding."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (t.to(torch.bfloat16) if t.is_floating_point() else t).cpu().contiguous()
        for name, t in head.state_dict().items()
        if "rotary" not in name
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = head.config.to_dict()
    config |= {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "draft_vocab_size": len(head.d2t),
        "tie_word_embeddings": False,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": list(head.features)},
        "ptd_token_id": MASK_TOKEN,
        "dtype": "bfloat16",
    }
    for key in ("layer_types", "_name_or_path", "transformers_version"):
        config.pop(key, None)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_head(folder: Path, target: Any) -> EagleHead:
    """Read the output of `export`, for the target of its training."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    vocabulary = tensors["d2t"] + torch.arange(len(tensors["d2t"]))
    head = EagleHead(target.config, vocabulary, parallel="mask_hidden" in tensors)
    head.load_state_dict(tensors)
    return head.eval()
