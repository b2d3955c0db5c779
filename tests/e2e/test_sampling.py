"""A drafter must leave the distribution of sampled answers alone; `tests/bench/sampling.py` judges all of them."""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.bench.sampling import judge, make_models

pytestmark = pytest.mark.vllm

DOUBTFUL = 0.05
"""A p-value below which a second engine draws ten times as many answers: chance is rarely twice so."""


@pytest.fixture(scope="module")
def models(in_vllm: ProcessPoolExecutor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    in_vllm.submit(make_models, folder).result()
    return folder


@pytest.mark.parametrize(
    "drafter",
    ["hybrid", "draft_model, sampled drafts", "eagle3, draft exit", "eagle3, parallel, sampled drafts", "pool"],
)
def test_sampled_answers_are_distributed_as_the_target_s(
    in_vllm: ProcessPoolExecutor, models: Path, drafter: str
) -> None:
    p, accepted = in_vllm.submit(judge, models, drafter, 2000).result()
    if p < DOUBTFUL:
        p, accepted = in_vllm.submit(judge, models, drafter, 20_000, seed=1).result()
    assert accepted > 0.02
    assert p > 0.001
