import pytest
import torch

from draftpick.engines.vllm.packed_linear import fits_packed_kernel


@pytest.mark.parametrize(
    ("n", "k", "dtype", "fits"),
    [
        (49152, 576, torch.bfloat16, True),
        (16, 32, torch.bfloat16, True),
        (24, 32, torch.bfloat16, False),
        (16, 48, torch.bfloat16, False),
        (16, 32, torch.float32, False),
    ],
)
def test_only_whole_tiles_of_bfloat16_are_packed(n: int, k: int, dtype: torch.dtype, fits: bool) -> None:
    assert fits_packed_kernel(n, k, dtype) is fits


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries that vLLM imports
@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="the CPU has no AVX512-BF16")
def test_a_row_s_product_does_not_depend_on_the_rows_beside_it() -> None:
    """Greedy answers are the same with drafts and without, to the last bit."""
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(960, 576, generator=generator).to(torch.bfloat16)
    rows = torch.randn(9, 576, generator=generator).to(torch.bfloat16)
    packed = torch.ops._C.convert_weight_packed(weight)
    alone = torch.cat([ops.weight_packed_linear_cpu(row[None], packed, 960, None) for row in rows])
    torch.testing.assert_close(alone.float(), rows.float() @ weight.float().T, rtol=0.02, atol=0.2)
    for number in range(1, 10):
        assert torch.equal(ops.weight_packed_linear_cpu(rows[:number], packed, 960, None), alone[:number])
