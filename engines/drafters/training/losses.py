"""Training losses of drafters, exact over the vocabulary up to the target's stored probabilities.

The target outputs hold the `t` likeliest tokens per position with their probabilities; the remaining mass is one more
class, "the rest". p is the target, q the drafter. The expected acceptance of one token is 1 - TVD(p, q).
"""

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(drafter's logits [m, vocabulary], target's tokens [m], its likeliest tokens and probabilities [m, t]) -> scalar."""


def ce(logits: torch.Tensor, labels: torch.Tensor, top: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Cross-entropy on the target's tokens."""
    return cross_entropy(logits.float(), labels)


def kl(logits: torch.Tensor, labels: torch.Tensor, top: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Forward KL, `sum p log(p / q)`."""
    p, log_q = _classes(logits, top, p)
    return (p * (p.clamp_min(1e-9).log() - log_q)).sum(1).mean()


def tvd(logits: torch.Tensor, labels: torch.Tensor, top: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Total variation distance, `1/2 sum |q - p|`: one minus the expected acceptance."""
    p, log_q = _classes(logits, top, p)
    return 0.5 * (log_q.exp() - p).abs().sum(1).mean()


def tvd_plus(logits: torch.Tensor, labels: torch.Tensor, top: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """TVD++ (arXiv 2403.00858): TVD's policy gradient, with the reward `1{p >= q}` standardised over the batch.

    With the exact sum over the vocabulary instead of samples, the mean cancels in the gradient and the division by the
    standard deviation remains: it amplifies a gradient that fades as the drafter improves.
    """
    p, log_q = _classes(logits, top, p)
    q = log_q.exp().detach()
    reward = (p >= q).float()
    mean = (q * reward).sum(1).mean()
    deviation = ((q * (reward - mean) ** 2).sum(1).mean()).sqrt().clamp_min(1e-3)
    surrogate = -(q * (reward - mean) / deviation * log_q).sum(1).mean()
    # The loss value is meaningless; report TVD's instead.
    return surrogate - surrogate.detach() + (0.5 * (q - p).abs().sum(1).mean()).detach()


LOSSES: dict[str, Loss] = {"ce": ce, "kl": kl, "tvd": tvd, "tvd++": tvd_plus}


def _classes(logits: torch.Tensor, top: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities p and log-probabilities of q over the likeliest tokens and the rest, [m, t + 1]."""
    log_q = logits.float().log_softmax(1).gather(1, top)
    rest_q = (1 - log_q.exp().sum(1, keepdim=True)).clamp_min(1e-6).log()
    rest_p = (1 - p.sum(1, keepdim=True)).clamp_min(0)
    return torch.cat([p, rest_p], 1), torch.cat([log_q, rest_q], 1)
