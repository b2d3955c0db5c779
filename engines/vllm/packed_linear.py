"""Linear layers of small batches on CPUs with AVX512-BF16: vLLM's packed kernel in place of oneDNN.

vLLM 0.29 uses its packed kernel with AMX alone, and for small weights. Without AMX it is as fast as oneDNN from 16 rows
on and up to twice as fast below, which is what a decoding step has: one row for each request and each drafted token.
"""

from typing import Any

_ROWS, _COLUMNS = 16, 32
"""A packed weight has whole tiles of this many rows and columns."""


def register_packed_linear() -> None:
    """Let vLLM use its packed kernel for bfloat16 weights of any size, if the CPU has AVX512-BF16 and no AMX."""
    import torch
    from vllm.model_executor.layers import utils

    if torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported():
        utils.check_cpu_sgl_kernel = fits_packed_kernel


def fits_packed_kernel(n: int, k: int, dtype: Any) -> bool:
    """Return whether a weight [n, k] of this type can be packed."""
    import torch

    return dtype == torch.bfloat16 and n % _ROWS == 0 and k % _COLUMNS == 0
