"""What vLLM must be helped with, by its own plugin hook: it calls `register` in each of its processes."""

from typing import Any


def register() -> None:
    """Replace `expand_kernel` of vLLM's CPU backend, which is broken in 0.29 (vllm-project/vllm#42638).

    It spreads each request's temperature, top_k and top_p over the rows of its drafted tokens, and writes them into a
    copy that is thrown away: sampled requests were verified against logits divided by whatever the memory held.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        import vllm.utils.cpu_triton_utils as kernels

        kernels.expand_kernel.func = expand


def expand(
    output: Any, values: Any, cu_num_tokens: Any, replace_from: float, replace_to: float, **_limits: int
) -> None:
    """Write `values[i]` to the rows of request i, which end at `cu_num_tokens[i]`; replaced where it is to be."""
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
    output.copy_(values.masked_fill(values == replace_from, replace_to).repeat_interleave(counts))
