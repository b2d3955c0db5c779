import pytest
import torch

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def test_rejected_rows_are_left_out() -> None:
    from draftpick.engines.vllm.head_proposer import accepted_rows

    rows, last = accepted_rows(torch.tensor([0, 5, 6, 11]), torch.tensor([1, 5, 10]))
    assert rows.tolist() == [0, 1, 5, 6, 7, 8, 9, 10]
    assert last.tolist() == [1, 2, 7]


def test_slots_follow_each_request_s_blocks() -> None:
    from draftpick.engines.vllm.head_proposer import slot_of

    slots = slot_of(torch.tensor([[7, 2], [4, 9]]), torch.tensor([[3, 0], [4, 1]]), block_size=4)
    assert slots.tolist() == [[31, 16], [8, 17]]
    assert slots.is_contiguous()
