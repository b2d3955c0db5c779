import importlib.metadata

import pytest
import torch

from engines.vllm_plugin import expand


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_values_are_spread_over_their_rows(dtype: torch.dtype) -> None:
    output = torch.full((5,), 9, dtype=dtype)
    expand(output, torch.tensor([0, 3, 2], dtype=dtype), torch.tensor([2, 2, 5], dtype=torch.int32), 0, 1)
    assert output.tolist() == [1, 1, 2, 2, 2]


def test_vllm_finds_the_plugin() -> None:
    (plugin,) = importlib.metadata.entry_points(group="vllm.general_plugins", name="draftpick")
    assert plugin.value == "engines.vllm_plugin:register"
