"""Top-k, top-p and random sampling on CPUs without sorting the vocabulary and without noise for each of its tokens.

vLLM sorts a whole row to find its nucleus, and draws an exponential variate for each token to sample one. Here a row's
nucleus is sought among its likeliest tokens, and a token is drawn by the inverse of the distribution function. Plain
torch; the signatures are those of vLLM's functions, which they can replace.
"""

from collections.abc import Sequence

import torch

LIKELIEST = 256
"""Tokens of a row among which its nucleus is sought; a row with a wider one is sorted."""
_ULP = 2.0**-24
_UNDERFLOW = 80.0
"""Logits so far below the likeliest may have a probability of zero in float32."""


def apply_top_k_top_p(logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor) -> torch.Tensor:
    """Return `logits` [rows, vocabulary], float32, with all tokens outside top k and top p at minus infinity.

    `k` [rows] is the size of the vocabulary where top-k is off, `p` [rows] is 1 where top-p is off. The result is that
    of `by_sort` to the last bit: a row is sorted if its nucleus is wider than `LIKELIEST`, or if rounding might decide
    its edge.
    """
    rows, size = logits.shape
    if size <= 2 * LIKELIEST:
        return by_sort(logits, k, p)
    values, tokens = logits.topk(LIKELIEST)
    in_top_k = torch.ones_like(values, dtype=torch.bool)
    without_k = torch.ones(rows, dtype=torch.bool)
    if k is not None:
        without_k = k == size
        least = values.gather(1, k.clamp(max=LIKELIEST).sub(1).long()[:, None])
        in_top_k = (values >= least) | without_k[:, None]
    kept, clear = _nucleus(logits, values, in_top_k, without_k, p)
    masked = torch.full_like(logits, -torch.inf).scatter_(1, tokens, values.masked_fill(~kept, -torch.inf))
    clear &= _settle_ties(masked, values, tokens, kept)
    if not clear.all():
        unmasked = ~clear & without_k & (p >= 1)
        unmasked[unmasked.clone()] = logits[unmasked].aminmax(dim=1).min > values[unmasked, 0] - _UNDERFLOW
        masked[unmasked] = logits[unmasked]
        if (unclear := ~(clear | unmasked)).any():
            masked[unclear] = by_sort(logits[unclear], None if k is None else k[unclear], p[unclear])
    return masked


def _nucleus(
    logits: torch.Tensor, values: torch.Tensor, in_top_k: torch.Tensor, without_k: torch.Tensor, p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which of the likeliest `values` stay, and in which rows that is beyond doubt.

    A token stays if it and all less likely tokens together exceed 1 - p. vLLM sums them in float32, in an order that
    only a sort gives, so sums closer to 1 - p than its rounding error are in doubt.
    """
    size, peak = logits.shape[1], values[:, :1]
    weights = (values - peak).exp_().double().masked_fill_(~in_top_k, 0)
    head = weights.sum(1, keepdim=True)
    total = head
    if without_k.any():
        total = torch.where(without_k[:, None], (logits - peak).exp_().sum(1, keepdim=True, dtype=torch.float64), head)
    at_least = 1 - weights.cumsum(1).sub_(weights).div_(total)
    limit = (1 - p[:, None]).double()
    # Half an ulp of each partial sum of ascending floats. All but the last of these sums are below the tail's.
    error = _ULP * ((size * (1 - head / total) + LIKELIEST + 16) * limit + 8)
    without_p = limit <= 0
    kept = in_top_k & ((at_least > limit) | without_p)
    doubt = in_top_k & torch.where(without_p, values < peak - _UNDERFLOW, (at_least - limit).abs() <= error)
    kept[:, 0], doubt[:, 0] = True, False
    beyond = kept[:, -1] | (in_top_k[:, -1] & ~without_k)
    return kept, total[:, 0].isfinite() & ~beyond & ~doubt.any(1)


def _settle_ties(masked: torch.Tensor, values: torch.Tensor, tokens: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Where only some tokens with the logit of the edge stay, let it be the last ones, in place.

    Return the rows without such tokens beyond the likeliest.
    """
    count = kept.sum(1, keepdim=True)
    edge = values.gather(1, count - 1)
    split = edge == values.gather(1, count.clamp(max=LIKELIEST - 1))
    for row in split[:, 0].nonzero()[:, 0].tolist():
        ties = values[row] == edge[row]
        stay = int(kept[row].logical_and(ties).sum())
        ordered = tokens[row, ties].sort().values
        masked[row, ordered[:-stay]] = -torch.inf
        masked[row, ordered[-stay:]] = edge[row]
    return ~(split & (edge == values[:, -1:]))[:, 0]


def by_sort(logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor) -> torch.Tensor:
    """vLLM's `apply_top_k_top_p_pytorch` with a stable sort: the last tokens of equal logits are the likelier ones.

    vLLM's sort is unstable: where the edge falls between equal logits, which of them stay is arbitrary there.
    """
    values, tokens = logits.sort(dim=-1, stable=True)
    if k is not None:
        least = values.gather(1, (values.shape[1] - k.long())[:, None])
        values.masked_fill_(values < least, -torch.inf)
    at_most = values.softmax(dim=-1).cumsum(dim=-1)
    outside = at_most <= 1 - p[:, None]
    outside[:, -1] = False
    values.masked_fill_(outside, -torch.inf)
    return torch.empty_like(logits).scatter_(1, tokens, values)


def random_sample(logits: torch.Tensor) -> torch.Tensor:
    """Draw a token of each row of `logits` [rows, vocabulary]."""
    return draw(logits.softmax(dim=-1, dtype=torch.float32))


def draw(weights: torch.Tensor) -> torch.Tensor:
    """Draw an index of each row in proportion to its `weights` [rows, n], float32, summed in float64."""
    sums = weights.cumsum(dim=-1, dtype=torch.float64)
    total = sums[:, -1:]
    point = torch.minimum(torch.rand_like(total) * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(sums, point, right=True).clamp_(max=weights.shape[1] - 1).squeeze(-1)


def rejection_sample(
    draft_token_ids: torch.Tensor,
    num_draft_tokens: Sequence[int],
    max_spec_len: int,
    draft_probs: torch.Tensor | None,
    target_logits: torch.Tensor,
    bonus_token_ids: torch.Tensor,
    is_greedy: torch.Tensor,
) -> torch.Tensor:
    """Return the accepted tokens of each request and the one after them, [requests, max_spec_len + 1], int32, else -1.

    Speculative sampling (arXiv 2211.17192): `draft_token_ids` [tokens] of all requests, one after the other, against
    `target_logits` [tokens, vocabulary]; without `draft_probs` [tokens, vocabulary] drafts are certain. Only the first
    rejected token of a request is replaced, since all after it are void.
    """
    counts = torch.as_tensor(num_draft_tokens)
    target = target_logits.softmax(dim=-1, dtype=torch.float32)
    drafts = draft_token_ids.long().clamp(min=0)[:, None]
    ratio = target.gather(1, drafts)[:, 0].double()
    if draft_probs is not None:
        ratio /= draft_probs.gather(1, drafts)[:, 0]
    accepted = (ratio >= torch.rand_like(ratio)) & (draft_token_ids >= 0)
    if is_greedy.any():
        greedy = is_greedy.repeat_interleave(counts)
        accepted[greedy] = target_logits[greedy].argmax(dim=-1) == draft_token_ids[greedy]
    output = torch.full((len(counts), max_spec_len + 1), -1, dtype=torch.int32)
    rejected: list[tuple[int, int, int]] = []
    start = 0
    for request, (count, bonus) in enumerate(zip(num_draft_tokens, bonus_token_ids[:, 0].tolist(), strict=True)):
        agreed = accepted[start : start + count].tolist()
        length = agreed.index(False) if False in agreed else count
        output[request, :length] = draft_token_ids[start : start + length]
        if length < count:
            rejected.append((request, length, start + length))
        else:
            output[request, count] = bonus
        start += count
    if rejected:
        requests, places, rows = torch.tensor(rejected).T
        output[requests, places] = _replacements(target, draft_probs, drafts, rows, is_greedy[requests]).int()
    return output


def _replacements(
    target: torch.Tensor,
    draft_probs: torch.Tensor | None,
    drafts: torch.Tensor,
    rows: torch.Tensor,
    is_greedy: torch.Tensor,
) -> torch.Tensor:
    """Return the token in place of each rejected one: the likeliest, or one drawn from what the draft left over."""
    chosen = target[rows]
    likeliest = chosen.argmax(dim=-1) if is_greedy.any() else rows
    left = chosen.scatter_(1, drafts[rows], 0) if draft_probs is None else chosen.sub_(draft_probs[rows]).clamp_(min=0)
    return torch.where(is_greedy, likeliest, draw(left))
