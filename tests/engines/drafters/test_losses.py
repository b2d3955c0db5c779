import pytest
import torch

from draftpick.engines.drafters.training.losses import LOSSES, ce, kl, tvd, tvd_plus

VOCABULARY, PLACES = 12, 5


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random drafter and target; the teacher tells the whole vocabulary."""
    torch.manual_seed(0)
    logits = torch.randn(PLACES, VOCABULARY, requires_grad=True)
    p, top = torch.randn(PLACES, VOCABULARY).softmax(1).sort(descending=True)
    return logits, top[:, 0], top, p


def test_kl_and_tvd_are_what_their_formulas_say(case: tuple[torch.Tensor, ...]) -> None:
    logits, wanted, top, p = case
    q = logits.softmax(1).gather(1, top)
    assert kl(logits, wanted, top, p).item() == pytest.approx((p * (p / q).log()).sum(1).mean().item(), abs=1e-4)
    assert tvd(logits, wanted, top, p).item() == pytest.approx(0.5 * (p - q).abs().sum(1).mean().item(), abs=1e-4)


def test_tvd_s_gradient_is_a_policy_gradient(case: tuple[torch.Tensor, ...]) -> None:
    """grad TVD = -E_q[1{p >= q} grad log q], and TVD++ is that over the reward's standard deviation."""
    logits, wanted, top, p = case
    (by_tvd,) = torch.autograd.grad(tvd(logits, wanted, top, p), logits)
    q = logits.softmax(1).gather(1, top)
    reward = (p >= q).float()
    expected = -(q.detach() * reward * q.log()).sum(1).mean()
    (by_policy,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(by_tvd, by_policy, atol=1e-5, rtol=1e-3)
    (by_plus,) = torch.autograd.grad(tvd_plus(logits, wanted, top, p), logits)
    mean = (q * reward).sum(1).mean()
    deviation = (q * (reward - mean) ** 2).sum(1).mean().sqrt()
    torch.testing.assert_close(by_plus, by_policy / deviation, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_leads_to_the_target(name: str, case: tuple[torch.Tensor, ...]) -> None:
    logits, wanted, top, p = case
    trained = logits.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([trained], lr=0.05)
    before = tvd(trained, wanted, top, p).item()
    for _ in range(300):
        optimizer.zero_grad()
        LOSSES[name](trained, wanted, top, p).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if name == "ce":
        assert (trained.argmax(1) == wanted).all()
    else:
        assert tvd(trained, wanted, top, p).item() < 0.2 * before


def test_what_the_teacher_leaves_out_is_one_class(case: tuple[torch.Tensor, ...]) -> None:
    logits, wanted, top, p = case
    full, cut = tvd(logits, wanted, top, p), tvd(logits, wanted, top[:, :4], p[:, :4])
    assert 0 < cut.item() <= full.item() + 1e-6
    assert ce(logits, wanted, top[:, :4], p[:, :4]).item() == ce(logits, wanted, top, p).item()
