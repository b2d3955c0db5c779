import importlib.metadata
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from draftpick.engines.vllm.plugin import KERNELS, expand_batch_to_tokens, register


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_values_are_spread_over_their_rows(dtype: torch.dtype) -> None:
    values, ends = torch.tensor([0, 3, 2], dtype=dtype), torch.tensor([2, 2, 5], dtype=torch.int32)
    output = expand_batch_to_tokens(values, ends, 5, 0, 1)
    assert output.tolist() == [1, 1, 2, 2, 2]
    assert output.dtype == dtype


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_vllm_s_sampler_uses_it() -> None:
    from vllm.v1.sample import rejection_sampler

    register()
    assert rejection_sampler.expand_batch_to_tokens is expand_batch_to_tokens


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries that vLLM imports
def test_the_kernels_of_rms_norm_agree_with_vllm_s_own() -> None:
    from vllm import ir

    register()
    generator = torch.Generator().manual_seed(0)
    x, residual, weight = (torch.randn(shape, generator=generator) for shape in ((4, 64), (4, 64), (64,)))
    norm, fused = ir.ops.rms_norm.impls, ir.ops.fused_add_rms_norm.impls
    torch.testing.assert_close(norm[KERNELS].impl_fn(x, weight, 1e-5), norm["native"].impl_fn(x, weight, 1e-5))
    wanted = fused["native"].impl_fn(x.clone(), residual.clone(), weight, 1e-5)
    torch.testing.assert_close(fused[KERNELS].impl_fn(x.clone(), residual.clone(), weight, 1e-5), wanted)
    assert norm[KERNELS].supports_args(x, weight, 1e-5)
    assert not norm[KERNELS].supports_args(x.bfloat16(), weight, 1e-5)  # the kernel reads both as one type


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_head_s_likeliest_draft_token_in_the_target_s_words() -> None:
    from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM

    class Processor:
        def get_top_tokens(self, lm_head: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
            return (hidden_states @ lm_head.T).argmax(-1)

    register()
    head = SimpleNamespace(
        logits_processor=Processor(), lm_head=torch.eye(3), draft_id_to_target_id=torch.tensor([5, 6, 7])
    )
    tokens = Eagle3LlamaForCausalLM.get_top_tokens(head, torch.tensor([[0.0, 1.0, 0.0], [2.0, 1.0, 0.0]]))
    assert tokens.tolist() == [1 + 6, 0 + 5]


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("seeded", [False, True])
def test_rejection_sampling_is_replaced_except_for_seeded_requests(
    seeded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.sample import rejection_sampler

    register()
    register()  # each of vLLM's processes may do so several times

    def noise_for_the_vocabulary(*_: object) -> None:
        raise LookupError

    monkeypatch.setattr(rejection_sampler, "sample_recovered_tokens", noise_for_the_vocabulary)
    logits = torch.full((2, 4), -torch.inf)
    logits[:, 3] = 0.0
    metadata = SimpleNamespace(
        all_greedy=False,
        all_random=True,
        generators={0: torch.Generator()} if seeded else {},
        temperature=torch.tensor([0.7]),
    )
    drafts, ends, bonus = torch.tensor([3, 3], dtype=torch.int32), torch.tensor([2]), torch.tensor([[1]])
    with pytest.raises(LookupError) if seeded else nullcontext():
        output = rejection_sampler.rejection_sample(drafts, [2], 2, ends, None, logits, bonus, metadata)
        assert output.tolist() == [[3, 3, 1]]


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_top_k_alone_is_left_to_vllm() -> None:
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    register()
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    masked = apply_top_k_top_p(logits, torch.tensor([1, 3]), None)
    assert masked.tolist() == [[-torch.inf, -torch.inf, 3.0], [1.0, 2.0, 3.0]]


def test_vllm_finds_the_plugin() -> None:
    (plugin,) = importlib.metadata.entry_points(group="vllm.general_plugins", name="draftpick")
    assert plugin.value == "draftpick.engines.vllm.plugin:register"
