"""EAGLE-3 heads on CPUs: vLLM's drafting loop without its modules, forward contexts and metadata of each token.

vLLM 0.29 runs a head's whole first pass, over accepted and rejected rows alike, although only the keys and values of
all but the last row are needed, and rebuilds its metadata for each drafted token. Here both are one function of a few
kernels, vLLM's own, on the head's packed weights and its paged KV cache. Drafts are those of vLLM's loop, up to ties.
"""

from typing import Any

import torch
from vllm import _custom_ops as ops
from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl
from vllm.v1.spec_decode.eagle import EagleProposer

Tensor = torch.Tensor


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
        self.starts = torch.arange(builder.vllm_config.scheduler_config.max_num_seqs + 1, dtype=torch.int32)

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
        q, k, v = qkv.split(self.sizes, dim=-1)
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

    def logits(self, output: Tensor) -> Tensor:
        """Return the logits of the draft vocabulary."""
        return linear(self.model.lm_head, output)[:, : len(self.targets)]


def linear(layer: Any, x: Tensor) -> Tensor:
    """Apply a linear layer of vLLM by its packed weights."""
    return layer.cpu_linear(x, layer.weight, layer.bias)


def rms_norm(x: Tensor, norm: Any) -> Tensor:
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, norm.weight, norm.variance_epsilon)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, norm: Any) -> None:
    """Add `x` to `residual` and write the norm of the sum to `x`, both in place."""
    torch.ops._C.fused_add_rms_norm(x, residual, norm.weight, norm.variance_epsilon)


class HeadProposer(EagleProposer):
    """vLLM's proposer of EAGLE heads with the loop above where it fits, and vLLM's elsewhere."""

    def __init__(self, vllm_config: Any, device: torch.device, runner: Any = None) -> None:
        super().__init__(vllm_config, device, runner)
        self._head: Head | None = None

    def initialize_attn_backend(self, kv_cache_config: Any, kernel_block_sizes: list[int] | None = None) -> None:
        super().initialize_attn_backend(kv_cache_config, kernel_block_sizes)
        self._head = None

    def propose(
        self,
        num_speculative_tokens: int,
        target_token_ids: Tensor,
        target_positions: Tensor,
        target_hidden_states: Tensor,
        next_token_ids: Tensor,
        token_indices_to_sample: Tensor | None,
        common_attn_metadata: Any,
        sampling_metadata: Any,
        mm_embed_inputs: Any = None,
        num_rejected_tokens_gpu: Tensor | None = None,
        slot_mappings: Any = None,
    ) -> Tensor:
        """Return the drafts [requests, `num_speculative_tokens`]."""
        if not self._prepare():
            return super().propose(
                num_speculative_tokens,
                target_token_ids,
                target_positions,
                target_hidden_states,
                next_token_ids,
                token_indices_to_sample,
                common_attn_metadata,
                sampling_metadata,
                mm_embed_inputs,
                num_rejected_tokens_gpu,
                slot_mappings,
            )
        head = self._head
        assert head is not None
        starts = common_attn_metadata.query_start_loc
        last = starts[1:] - 1 if token_indices_to_sample is None else token_indices_to_sample.long()
        ids = target_token_ids.roll(-1)
        ids[last] = next_token_ids.to(ids.dtype)
        seq_lens, slots = common_attn_metadata.seq_lens, common_attn_metadata.slot_mapping
        if num_rejected_tokens_gpu is not None:
            seq_lens = seq_lens - num_rejected_tokens_gpu
            rows, last = accepted_rows(starts, last)
            ids, target_positions, slots = ids[rows], target_positions[rows], slots[rows]
            target_hidden_states = target_hidden_states[rows]
        hidden = self.model.combine_hidden_states(target_hidden_states)
        positions, table = target_positions[last], common_attn_metadata.block_table_tensor
        output, state = head.forward(ids, target_positions, hidden, slots, last, seq_lens, table)
        drafts: list[Tensor] = []
        ahead = positions + torch.arange(1, num_speculative_tokens).unsqueeze(1)
        ahead_slots = slot_of(table, ahead, head.block_size)
        for i in range(num_speculative_tokens):
            if i:
                seq_lens = seq_lens + 1
                output, state = head.forward(drafts[-1], ahead[i - 1], state, ahead_slots[i - 1], None, seq_lens, table)
            drafts.append(head.targets[head.logits(output).argmax(-1)])
        return torch.stack(drafts, dim=1) if drafts else ids.new_empty(len(last), 0)

    def _prepare(self) -> bool:
        """Build the head once its KV cache is bound; return whether it fits this model."""
        if (
            self._head is None
            and Head.fits(self.model, self.vllm_config)
            and not self._enable_probabilistic_draft_probs
        ):
            self._head = Head(self.model, self.draft_attn_groups[0].get_metadata_builder())
        return self._head is not None


def accepted_rows(starts: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Return (the rows up to each request's last accepted one, the places of those last ones among them)."""
    begin, end = starts[:-1].tolist(), last.tolist()
    rows = [row for a, b in zip(begin, end, strict=True) for row in range(a, b + 1)]
    ends = torch.tensor([b - a + 1 for a, b in zip(begin, end, strict=True)]).cumsum(0) - 1
    return torch.tensor(rows), ends


def slot_of(table: Tensor, positions: Tensor, block_size: int) -> Tensor:
    """Return the cache slots of `positions` [tokens, requests]."""
    blocks = table.gather(1, (positions // block_size).T).T.contiguous()  # the kernels read no strides
    return blocks.long() * block_size + positions % block_size


def install() -> None:
    """Put `HeadProposer` in the place of vLLM's class."""
    import vllm.v1.worker.gpu_model_runner as runner

    runner.EagleProposer = HeadProposer  # type: ignore[misc]
