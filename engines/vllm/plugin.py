"""Fixes and extensions of vLLM through its plugin hook, which calls `register` in each of its processes."""

from typing import Any

from draftpick.engines.vllm.packed_linear import register_packed_linear

KERNELS = "draftpick"
"""Name of the kernels below in vLLM's `ir_op_priority`."""


def register() -> None:
    """Fix and speed up vLLM 0.29 on CPUs, EAGLE-3 heads included; give these a cheaper argmax.

    The argmax is what `use_local_argmax_reduction` needs from a model; other models of vLLM have it. Without it a
    head's few thousand logits are scattered over the target's whole vocabulary before the argmax.
    """
    from vllm.model_executor.models.interfaces import LocalArgmaxMixin
    from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM
    from vllm.platforms import current_platform

    Eagle3LlamaForCausalLM.get_top_tokens = LocalArgmaxMixin.get_top_tokens
    if current_platform.is_cpu():
        current_platform.import_kernels()
        register_norms()
        register_packed_linear()
        register_sampling()
        from draftpick.engines.vllm import head_proposer

        head_proposer.install()
    from draftpick.engines.vllm import finished_requests, pool_reports, pool_runner, predictions

    pool_runner.install()
    pool_reports.install()
    finished_requests.install()
    predictions.install()


def expand_batch_to_tokens(
    x: Any, cu_num_tokens: Any, num_tokens: int, replace_from: float = 0, replace_to: float = 0
) -> Any:
    """Return `x[i]`, with the given replacement, in the rows of request i, which end at `cu_num_tokens[i]`.

    vLLM's own writes into a discarded copy (vllm-project/vllm#42638): a request's temperature, top_k and top_p never
    reached the rows of its drafted tokens, which were verified against uninitialised memory.
    """
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
    return x.masked_fill(x == replace_from, replace_to).repeat_interleave(counts, output_size=num_tokens)


def register_sampling() -> None:
    """Replace vLLM's top-p, random sampling and rejection sampling on CPUs: see `topk_topp`; and what gives a drafted
    token its request's parameters. Idempotent.

    Seeded requests keep vLLM's own noise, and so their answers: vLLM draws it for each token of the vocabulary, so a
    change of the nucleus by rounding does not change the noise of the other tokens.
    """
    from vllm.v1.sample import rejection_sampler
    from vllm.v1.sample.ops import topk_topp_sampler

    from draftpick.engines.vllm import topk_topp

    mask, reject = topk_topp_sampler.apply_top_k_top_p, rejection_sampler.rejection_sample
    if KERNELS in vars(mask):
        return

    def apply_top_k_top_p(logits: Any, k: Any, p: Any) -> Any:
        return mask(logits, k, p) if p is None else topk_topp.apply_top_k_top_p(logits, k, p)

    def rejection_sample(
        draft_token_ids: Any,
        num_draft_tokens: list[int],
        max_spec_len: int,
        cu_num_draft_tokens: Any,
        draft_probs: Any,
        target_logits: Any,
        bonus_token_ids: Any,
        metadata: Any,
        **options: Any,
    ) -> Any:
        head = draft_token_ids, num_draft_tokens, max_spec_len
        tail = draft_probs, target_logits, bonus_token_ids
        if metadata.all_greedy or metadata.generators or any(value not in (None, False) for value in options.values()):
            return reject(*head, cu_num_draft_tokens, *tail, metadata, **options)
        return topk_topp.rejection_sample(*head, *tail, metadata.temperature == rejection_sampler.GREEDY_TEMPERATURE)

    vars(apply_top_k_top_p)[KERNELS] = True
    for module in (topk_topp_sampler, rejection_sampler):
        module.apply_top_k_top_p = apply_top_k_top_p
    topk_topp_sampler.compiled_random_sample = topk_topp.random_sample
    rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens
    rejection_sampler.rejection_sample = rejection_sample


def register_norms() -> None:
    """Register vLLM's C++ RMSNorm kernels on CPUs too, where it would compose the norm of eight operations.

    Idempotent.
    """
    import torch
    from vllm import ir

    if KERNELS in ir.ops.rms_norm.impls:
        return

    def fits(x: Any, weight: Any, variance_size: Any) -> bool:
        return variance_size is None and weight is not None and weight.dtype == x.dtype and x.is_contiguous()

    def fits_norm(x: Any, weight: Any, epsilon: float, variance_size: Any = None) -> bool:
        return fits(x, weight, variance_size)

    def fits_fused(x: Any, x_residual: Any, weight: Any, epsilon: float, variance_size: Any = None) -> bool:
        return fits(x, weight, variance_size) and x_residual.is_contiguous()

    # vLLM reads the types of the arguments.
    @ir.ops.rms_norm.register_impl(KERNELS, supports_args=fits_norm)  # type: ignore[untyped-decorator]
    def rms_norm(
        x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> torch.Tensor:
        out = torch.empty_like(x)
        torch.ops._C.rms_norm(out, x, weight, epsilon)
        return out

    @ir.ops.fused_add_rms_norm.register_impl(KERNELS, supports_args=fits_fused, inplace=True)  # type: ignore[untyped-decorator]
    def fused_add_rms_norm(
        x: torch.Tensor,
        x_residual: torch.Tensor,
        weight: torch.Tensor | None,
        epsilon: float,
        variance_size: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
        return x, x_residual
