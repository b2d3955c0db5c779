"""EAGLE-3 heads on CPUs: vLLM's drafting loop without its modules, forward contexts and metadata of each token.

vLLM 0.29 runs a head's whole first pass, over accepted and rejected rows alike, although only the keys and values of
all but the last row are needed, and rebuilds its metadata for each drafted token. Here both are one function of a few
kernels, vLLM's own, on the head's packed weights and its paged KV cache. Drafts are those of vLLM's loop, up to ties.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from vllm import _custom_ops as ops
from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl
from vllm.v1.spec_decode.eagle import EagleProposer

from draftpick.engines.drafter_options import HeadOptions
from draftpick.engines.vllm.draft_exit import DraftExit, Request

GREEDY = 1e-5
"""vLLM's greatest temperature of greedy sampling."""
MOST_UNREAD = 64
"""Rows that are read at once even while a request's head rests: a prompt that is computed again."""

Tensor = torch.Tensor


RELIES_ON = {
    "vllm._custom_ops:cpu_attention_with_kv_cache": "e9a34786a915",
    "vllm._custom_ops:cpu_attn_get_scheduler_metadata": "1b3901ade4b1",
    "vllm._custom_ops:cpu_attn_reshape_and_cache": "65cc4f4cf563",
    "vllm.model_executor.layers.rotary_embedding.base:RotaryEmbedding.forward_cpu": "b749c83b4c38",
    "vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm": "a98204a3d07f",
    "vllm.model_executor.models.llama:LlamaAttention.forward": "a0f9f508aa38",
    "vllm.model_executor.models.llama:LlamaMLP.forward": "c53e9215b55c",
    "vllm.model_executor.models.llama_eagle3:Eagle3LlamaForCausalLM.combine_hidden_states": "a7f0bf198b98",
    "vllm.model_executor.models.llama_eagle3:Eagle3LlamaForCausalLM.compute_logits": "0af3f208eb38",
    "vllm.model_executor.models.llama_eagle3:LlamaDecoderLayer.forward": "b5d842250169",
    "vllm.model_executor.models.llama_eagle3:LlamaModel.forward": "504d2a14ea27",
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl.do_kv_cache_update": "9cccd68715a2",
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl.forward": "59c4e418319a",
    "vllm.v1.attention.backends.cpu_attn:CPUAttentionMetadataBuilder.build": "7ff5ab962cb4",
    "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer.initialize_attn_backend": "f2f51d1f24de",
    "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer.prepare_inputs_padded": "ad9bd800a78c",
    "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer.propose": "6f93dd3c25ef",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._copy_draft_token_ids_to_cpu": "2f68963acce4",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._get_draft_token_ids_cpu": "48bdeff52e00",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._input_fits_in_drafter": "24d6a45dca3c",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.propose_draft_token_ids": "a60269aca9de",
}
"""Functions of vLLM that this module calls or computes itself, with a digest of each's source in vLLM 0.29."""


class Head:
    """The forward pass of a head with one layer, for the rows of a step or for one drafted token a request.

    `model` and `builder` are vLLM's; the KV cache must be bound to the attention layer.
    """

    def __init__(self, model: Any, builder: Any) -> None:
        self.model, self.builder = model, builder
        inner = model.model
        self.layer = inner.layers[0]
        self.embeddings = inner.embed_tokens.weight
        self.carries_norm = inner.norm_output
        self.norm = inner.norm
        attention = self.layer.self_attn
        self.sizes = [attention.q_size, attention.kv_size, attention.kv_size]
        self.rope = attention.rotary_emb
        self.attention = attention.attn
        cache = self.attention.kv_cache
        blocks, heads, self.block_size, _ = cache.shape
        self.keys, self.values = cache.view(blocks, heads, self.block_size * 2, -1).chunk(2, dim=2)
        vocab = model.config.draft_vocab_size
        self.targets = torch.arange(vocab) + model.draft_id_to_target_id
        self.starts = torch.arange(builder.vllm_config.scheduler_config.max_num_batched_tokens + 1, dtype=torch.int32)

    @staticmethod
    def fits(model: Any, vllm_config: Any) -> bool:
        """Return True if `Head` computes what this model does."""
        if type(model) is not Eagle3LlamaForCausalLM or len(model.model.layers) != 1:
            return False
        layer, processor = model.model.layers[0], model.logits_processor
        linear = [layer.self_attn.qkv_proj, layer.self_attn.o_proj, layer.mlp.gate_up_proj, layer.mlp.down_proj]
        return (
            all(hasattr(one, "cpu_linear") for one in [*linear, model.lm_head])
            and isinstance(layer.self_attn.attn.impl, CPUAttentionBackendImpl)
            and layer.self_attn.attn.impl.sinks is None
            and layer._residual_norm.__func__ is type(layer)._norm_after_residual
            and processor.scale == 1.0
            and processor.soft_cap is None
            and vllm_config.parallel_config.world_size == 1
            and vllm_config.cache_config.cache_dtype == "auto"
            and not vllm_config.model_config.uses_mrope
        )

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        hidden: Tensor,
        slots: Tensor,
        last: Tensor | None,
        seq_lens: Tensor,
        table: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values of all rows; return (output, state for the next token) of the rows `last`, by default
        of all.

        `ids`, `positions`, `slots` [rows]; `hidden` [rows, hidden]; `seq_lens` [requests], the text up to each
        request's last row included; `table` [requests, blocks].
        """
        layer, attention = self.layer, self.attention
        rows = len(ids)
        embeds = rms_norm(torch.embedding(self.embeddings, ids), layer.input_layernorm)
        qkv = linear(layer.self_attn.qkv_proj, torch.cat([embeds, rms_norm(hidden, layer.hidden_norm)], dim=-1))
        q, k, v = torch.split(qkv, self.sizes, dim=-1)
        self.rope.forward_cpu(positions, q, k)
        ops.cpu_attn_reshape_and_cache(
            k.view(rows, attention.num_kv_heads, -1),
            v.view(rows, attention.num_kv_heads, -1),
            self.keys, self.values, slots, attention.isa,
        )  # fmt: skip
        if last is not None:
            q, hidden = q[last], hidden[last]
        out = linear(layer.self_attn.o_proj, self._attend(q, seq_lens, table))
        residual = hidden if last is not None else hidden.clone()
        add_rms_norm(out, residual, layer.post_attention_layernorm)
        gates = linear(layer.mlp.gate_up_proj, out)
        gated = gates.new_empty(len(gates), gates.shape[1] // 2)
        torch.ops._C.silu_and_mul(gated, gates)
        out = linear(layer.mlp.down_proj, gated)
        add_rms_norm(out, residual, self.norm)
        return out, out if self.carries_norm else residual

    def _attend(self, q: Tensor, seq_lens: Tensor, table: Tensor) -> Tensor:
        """Attention of one query a request [requests, q_size] over the paged cache."""
        builder, impl = self.builder, self.attention.impl
        requests = len(q)
        starts = self.starts[: requests + 1]
        metadata = ops.cpu_attn_get_scheduler_metadata(
            num_reqs=requests,
            num_heads=builder.num_heads,
            num_kv_heads=builder.num_kv_heads,
            head_dim=builder.head_dim,
            seq_lens=seq_lens,
            dtype=builder.dtype,
            query_start_loc=starts,
            causal=True,
            sliding_window_size=builder.window_size,
            isa=builder.isa,
            enable_kv_split=True,
        )
        query = q.view(requests, builder.num_heads, builder.head_dim)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        ops.cpu_attention_with_kv_cache(
            query=query,
            key_cache=self.keys,
            value_cache=self.values,
            output=out,
            query_start_loc=starts,
            seq_lens=seq_lens,
            scale=impl.scale,
            causal=True,
            alibi_slopes=impl.alibi_slopes,
            sliding_window=impl.sliding_window,
            block_table=table,
            softcap=impl.logits_soft_cap,
            scheduler_metadata=metadata,
            s_aux=None,
        )
        return out.view(requests, -1)

    def best(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return (probabilities, tokens of the target's vocabulary) of the likeliest next tokens."""
        logits = linear(self.model.lm_head, output)[:, : len(self.targets)]
        probabilities, tokens = logits.float().softmax(-1).max(-1)
        return probabilities, self.targets[tokens]


def linear(layer: Any, x: Tensor) -> Any:
    """Apply a linear layer of vLLM by its packed weights."""
    return layer.cpu_linear(x, layer.weight, layer.bias)


def rms_norm(x: Tensor, norm: Any) -> Tensor:
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, norm.weight, norm.variance_epsilon)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, norm: Any) -> None:
    """Add `x` to `residual` and write the norm of the sum to `x`, both in place."""
    torch.ops._C.fused_add_rms_norm(x, residual, norm.weight, norm.variance_epsilon)


class Rows(NamedTuple):
    """Verified tokens that a head reads, each with its successor in `ids`: [rows], `hidden` [rows, hidden]."""

    ids: Tensor
    positions: Tensor
    slots: Tensor
    hidden: Tensor

    def cut(self, begin: int, end: int) -> "Rows":
        return Rows(*(each[begin:end] for each in self))

    @staticmethod
    def join(parts: "list[Rows]") -> "Rows":
        return parts[0] if len(parts) == 1 else Rows(*map(torch.cat, zip(*parts, strict=True)))

    def copy(self) -> "Rows":
        return Rows(*(each.clone() for each in self))


class _Request:
    """One request: its draft-exit, and the rows that the head has not read yet."""

    def __init__(self, draft_exit: Request | None) -> None:
        self.exit = draft_exit
        self.unread: list[Rows] = []
        self.next_position = 0


class HeadProposer(EagleProposer):
    """vLLM's proposer of EAGLE heads with the loop above where it fits, and vLLM's elsewhere."""

    def __init__(self, vllm_config: Any, device: torch.device, runner: Any = None) -> None:
        super().__init__(vllm_config, device, runner)
        options = HeadOptions.model_validate((vllm_config.additional_config or {}).get("drafter", {}))
        costs = options.draft_cost, options.verify_cost, options.pass_cost
        self._exit = DraftExit(*costs) if options.draft_exit else None
        self._batch = runner
        self._head: Head | None = None
        self._requests: dict[str, _Request] = {}

    def initialize_attn_backend(self, kv_cache_config: Any, kernel_block_sizes: list[int] | None = None) -> None:
        super().initialize_attn_backend(kv_cache_config, kernel_block_sizes)
        self._head = None  # the KV cache is not bound yet

    def propose(self, num_speculative_tokens: int, **step: Any) -> Any:
        """Return the drafts: [requests, `num_speculative_tokens`], or lists of at most as many."""
        if (
            self._head is None
            and Head.fits(self.model, self.vllm_config)
            and not self._enable_probabilistic_draft_probs
        ):
            self._head = Head(self.model, self.draft_attn_groups[0].get_metadata_builder())
        if self._head is None:
            return super().propose(num_speculative_tokens, **step)
        metadata, last = step["common_attn_metadata"], step["token_indices_to_sample"]
        last = metadata.query_start_loc[1:] - 1 if last is None else last.long()
        ids = step["target_token_ids"].roll(-1)
        ids[last] = step["next_token_ids"].to(ids.dtype)
        rows = Rows(ids, step["target_positions"], metadata.slot_mapping, step["target_hidden_states"])
        parts = self._unread(
            rows, metadata.query_start_loc.tolist(), last.tolist(), step["sampling_metadata"].temperature
        )
        drafts: list[list[int]] = [[] for _ in last]
        if reading := [i for i, part in enumerate(parts) if part]:
            self._draft(drafts, reading, parts, metadata.block_table_tensor, num_speculative_tokens)
        return drafts

    def _unread(self, rows: Rows, starts: list[int], last: list[int], temperature: Tensor | None) -> list[list[Rows]]:
        """Return the rows that each request's head is to read now; none where it rests.

        Rejected rows are left out: they come again, with other tokens.
        """
        names = self._batch.input_batch.req_ids
        former, self._requests = self._requests, {}
        parts = []
        for i, name in enumerate(names):
            begin, end = starts[i], last[i] + 1
            sampled = temperature is not None and float(temperature[i]) > GREEDY
            request = former.get(name) or _Request(self._exit.start(sampled) if self._exit else None)
            self._requests[name] = request
            new = rows.cut(begin, end)
            reads = True
            if request.exit is not None:
                verified = starts[i + 1] - begin - 1
                if verified <= self.num_speculative_tokens:
                    request.exit.score(verified, end - begin - 1)
                position = int(new.positions[0])
                if request.next_position != position:  # preempted, or the head was not asked
                    request.unread = []
                request.next_position = position + end - begin
                reads = request.exit.drafts() or end - begin > MOST_UNREAD
            parts.append([*request.unread, new] if reads else [])
            if reads:
                request.unread = []
            else:
                request.unread.append(new.copy())
        return parts

    def _draft(
        self, drafts: list[list[int]], reading: list[int], parts: list[list[Rows]], table: Tensor, length: int
    ) -> None:
        """Read the rows of the requests `reading`, and append to their drafts."""
        head = self._head
        assert head is not None
        rows = Rows.join([part for i in reading for part in parts[i]])
        last = torch.tensor([sum(len(part.ids) for part in parts[i]) for i in reading]).cumsum(0) - 1
        exits = [self._requests[name].exit for name in self._batch.input_batch.req_ids]
        positions = rows.positions[last]
        if len(reading) < len(drafts):
            table = table[torch.tensor(reading)]
        hidden = self.model.combine_hidden_states(rows.hidden)
        first = head.forward(rows.ids, positions=rows.positions, hidden=hidden, slots=rows.slots, last=last,
                             seq_lens=(positions + 1).int(), table=table)  # fmt: skip

        def add(row: int, token: int, probability: float) -> bool:
            drafts[reading[row]].append(token)
            draft_exit = exits[reading[row]]
            return draft_exit is None or draft_exit.add(probability)

        draft_rows(head, first, positions, table, length, add)
        for draft, draft_exit in zip(drafts, exits, strict=True):
            if draft and draft_exit is not None:
                del draft[draft_exit.length() :]


def draft_rows(
    head: Head,
    first: tuple[Tensor, Tensor],
    positions: Tensor,
    table: Tensor,
    length: int,
    add: Callable[[int, int, float], bool],
) -> list[int]:
    """Draft at most `length` tokens after the rows at `positions` [requests], whose output and state are `first`.

    `add` takes a request's place, a token and its probability, and says whether to draft another. Returns the requests
    of each pass but the first.
    """
    output, state = first
    passes: list[int] = []
    places = list(range(len(positions)))
    while True:
        probabilities, ids = head.best(output)
        drafted = zip(ids.tolist(), probabilities.tolist(), strict=True)
        goes_on = [row for row, (token, value) in enumerate(drafted) if add(places[row], token, value)]
        if not goes_on or len(passes) + 1 == length:
            break
        if len(goes_on) < len(places):
            places = [places[row] for row in goes_on]
            at = torch.tensor(goes_on)
            ids, positions, state, table = ids[at], positions[at], state[at], table[at]
        positions = positions + 1
        slots = slot_of(table, positions, head.block_size)
        output, state = head.forward(ids, positions, state, slots, None, (positions + 1).int(), table)
        passes.append(len(places))
    return passes


def slot_of(table: Tensor, positions: Tensor, block_size: int) -> Tensor:
    """Return the cache slots of `positions` [requests]; `table` [requests, blocks]."""
    blocks = table.gather(1, (positions // block_size).unsqueeze(1)).squeeze(1)
    return blocks.long() * block_size + positions % block_size


def install() -> None:
    """Put `HeadProposer` in the place of vLLM's class."""
    import vllm.v1.worker.gpu_model_runner as runner

    runner.EagleProposer = HeadProposer
