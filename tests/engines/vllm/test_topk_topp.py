"""Partial selection against vLLM's own sort, and exact draws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from draftpick.engines.vllm import topk_topp
from draftpick.engines.vllm.topk_topp import (
    LIKELIEST,
    apply_top_k_top_p,
    by_sort,
    draw,
    random_sample,
    rejection_sample,
)

VOCABULARY = 4 * LIKELIEST

shapes = st.sampled_from(["peaked", "flat", "bfloat16", "two values", "constant", "partly forbidden", "far apart"])
top_ps = st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.95, 0.999, 1 - 2**-24, 1.0])
top_ks = st.sampled_from([1, 2, 50, LIKELIEST - 1, LIKELIEST, LIKELIEST + 1, VOCABULARY])
temperatures = st.sampled_from([0.01, 0.3, 0.7, 1.0, 2.0, 100.0])


def logits_of(shape: str, seed: int) -> torch.Tensor:
    """One row of a kind."""
    row = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))
    match shape:
        case "peaked":
            return row * 5
        case "bfloat16":
            return (row * 5).bfloat16().float()
        case "two values":
            return (row > 2).float()
        case "constant":
            return torch.full_like(row, -3.0)
        case "partly forbidden":
            return row.masked_fill(row < 1, -torch.inf) * 5
        case "far apart":
            return row * 60
        case _:
            return row * 0.1


Row = tuple[str, int, float, int, float]
batches = st.lists(st.tuples(shapes, st.integers(0, 9), temperatures, top_ks, top_ps), min_size=1, max_size=4)


def batch(asked: list[Row], with_k: bool) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Logits, k and p of these rows."""
    logits = torch.stack([logits_of(shape, seed) / temperature for shape, seed, temperature, _, _ in asked])
    k = torch.tensor([k for *_, k, _ in asked], dtype=torch.int32) if with_k else None
    return logits, k, torch.tensor([p for *_, p in asked])


@settings(max_examples=60, deadline=None)
@given(batches, st.booleans())
def test_what_stays_is_what_a_sort_leaves_to_the_last_bit(asked: list[Row], with_k: bool) -> None:
    logits, k, p = batch(asked, with_k)
    assert torch.equal(apply_top_k_top_p(logits.clone(), k, p), by_sort(logits, k, p))


def test_ties_beyond_the_likeliest_tokens() -> None:
    logits, p = torch.zeros(1, VOCABULARY), torch.tensor([0.01])
    assert torch.equal(apply_top_k_top_p(logits.clone(), None, p), by_sort(logits, None, p))


@pytest.mark.parametrize("strange", [torch.nan, torch.inf])
def test_rows_without_a_distribution_are_left_to_the_sort(strange: float) -> None:
    logits = torch.stack([logits_of("peaked", 0), logits_of("peaked", 1)])
    logits[0, 7] = strange
    p = torch.tensor([0.9, 0.9])
    torch.testing.assert_close(
        apply_top_k_top_p(logits.clone(), None, p), by_sort(logits, None, p), rtol=0, atol=0, equal_nan=True
    )


def test_an_ordinary_row_is_not_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk_topp, "by_sort", None)
    logits = torch.stack([logits_of("peaked", 0), logits_of("bfloat16", 1), logits_of("peaked", 2)])
    masked = apply_top_k_top_p(logits, torch.tensor([VOCABULARY, VOCABULARY, 5]), torch.tensor([0.9, 1.0, 1.0]))
    assert (masked > -torch.inf).sum(1).tolist()[1:] == [VOCABULARY, 5]


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@settings(max_examples=60, deadline=None)
@given(batches, st.booleans())
def test_what_stays_is_what_vllm_leaves(asked: list[Row], with_k: bool) -> None:
    """Bit by bit, but for which of several equal logits at the edge stay: vLLM's sort is unstable."""
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

    logits, k, p = batch(asked, with_k)
    ours = apply_top_k_top_p(logits.clone(), k, p)
    wanted = apply_top_k_top_p_pytorch(logits.clone(), k, p)
    assert torch.equal(ours.sort().values, wanted.sort().values)
    edge = wanted.masked_fill(wanted == -torch.inf, torch.inf).amin(1, keepdim=True)
    assert torch.equal(ours.masked_fill(logits == edge, 0), wanted.masked_fill(logits == edge, 0))


def test_tokens_are_drawn_in_proportion_to_their_probability() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0, 0.5])
    drawn = random_sample(logits.expand(20_000, -1)).bincount(minlength=5)
    assert drawn[2] == 0
    seen, expected = (x[[0, 1, 3, 4]].double() for x in (drawn, logits.softmax(0) * 20_000))
    assert chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > 1e-3


def test_tokens_are_drawn_from_the_nucleus_in_proportion_to_their_probability() -> None:
    """Against the definition in float64."""
    torch.manual_seed(0)
    n, row, p = 50_000, logits_of("peaked", 3) / 2, 0.9
    likeliest = row.double().softmax(0).sort(descending=True)
    nucleus = likeliest.values[: int((likeliest.values.cumsum(0) < p).sum()) + 1]
    masked = apply_top_k_top_p(row[None].clone(), None, torch.tensor([p]))
    drawn = torch.cat([random_sample(masked.expand(500, -1)) for _ in range(n // 500)]).bincount(minlength=VOCABULARY)
    seen = drawn[likeliest.indices].double()
    assert seen[len(nucleus) :].sum() == 0
    often = (nucleus / nucleus.sum() * n > 5).nonzero()[:, 0]
    expected = nucleus[often] / nucleus[often].sum() * seen[often].sum()
    assert chisquare(seen[often], expected).pvalue > 1e-3


def test_a_draw_needs_some_weight_only() -> None:
    assert draw(torch.tensor([[0.0, 0.0, 1e-38, 0.0], [1.0, 0.0, 0.0, 0.0]])).tolist() == [2, 0]


@pytest.mark.parametrize("certain", [True, False])
def test_rejection_sampling_leaves_the_target_s_distribution(certain: bool) -> None:
    torch.manual_seed(0)
    n, target, proposal = 30_000, torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    drafts = torch.full((n,), 1) if certain else proposal.expand(n, -1).multinomial(1)[:, 0]
    output = rejection_sample(
        drafts.int(),
        [1] * n,
        1,
        None if certain else proposal.expand(n, -1),
        target.log().expand(n, -1),
        torch.full((n, 1), 9),
        torch.zeros(n, dtype=torch.bool),
    )
    seen = output[:, 0].bincount(minlength=4)
    assert seen[3] == 0
    assert chisquare(seen[:3].double(), (target[:3] * n).double()).pvalue > 1e-3
    assert torch.equal(output[:, 1] == 9, output[:, 0] == drafts) or not certain


def test_each_request_ends_at_its_first_rejected_token_or_with_the_bonus() -> None:
    logits = torch.full((5, 4), -torch.inf)
    logits[range(5), [1, 2, 3, 1, 0]] = 0.0
    output = rejection_sample(
        torch.tensor([1, 2, 0, 1, 0], dtype=torch.int32),
        [3, 0, 2],
        3,
        None,
        logits,
        torch.tensor([[7], [8], [9]]),
        torch.tensor([False, False, True]),
    )
    assert output.tolist() == [[1, 2, 3, -1], [8, -1, -1, -1], [1, 0, 9, -1]]
