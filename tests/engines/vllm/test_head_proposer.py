from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engines.drafters.tiny import VOCABULARY, write_head, write_target
from tests.engines.vllm.digests import changed

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def test_vllm_s_functions_are_those_that_the_loop_was_written_for() -> None:
    from draftpick.engines.vllm.head_proposer import RELIES_ON

    assert not changed(RELIES_ON), "compare with head_proposer.py, then note the new digests"


def test_slots_follow_each_request_s_blocks() -> None:
    from draftpick.engines.vllm.head_proposer import slot_of

    table = torch.tensor([[7, 2], [4, 9]])
    assert slot_of(table, torch.tensor([3, 0]), block_size=4).tolist() == [31, 16]
    assert slot_of(table, torch.tensor([4, 5]), block_size=4).tolist() == [8, 37]


def test_drafts_are_those_of_vllm_s_own_loop(in_vllm: ProcessPoolExecutor, tmp_path: Path) -> None:
    assert in_vllm.submit(compare, tmp_path).result()


def compare(folder: Path) -> bool:
    """Draft every step of a few requests by both loops: whether all drafts were the same."""
    from vllm import LLM, SamplingParams
    from vllm.v1.spec_decode.eagle import EagleProposer

    from draftpick.engines.vllm.head_proposer import HeadProposer

    write_target(folder / "target", layers=7, head_dim=32, spread=6)
    write_head(folder / "target", folder / "head", parallel=False)
    same, propose = [], HeadProposer.propose

    def both(self: Any, **step: Any) -> Any:
        ours = propose(self, **step)
        theirs = EagleProposer.propose(self, **step).tolist()
        same.append(ours == theirs and self._head is not None)
        return theirs

    head = {
        "method": "eagle3",
        "model": str(folder / "head"),
        "num_speculative_tokens": 3,
        "use_local_argmax_reduction": True,
    }
    llm = LLM(
        model=str(folder / "target"), dtype="float32", enforce_eager=True, max_model_len=256,
        kv_cache_memory_bytes=2**26, skip_tokenizer_init=True, speculative_config=head,
    )  # fmt: skip
    random = torch.Generator().manual_seed(0)
    prompts = [torch.randint(VOCABULARY, (n,), generator=random).tolist() for n in (3, 40, 130)]
    params = SamplingParams(temperature=0.5, max_tokens=24, ignore_eos=True, detokenize=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeadProposer, "propose", both)
        llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return len(same) > 8 and all(same)
