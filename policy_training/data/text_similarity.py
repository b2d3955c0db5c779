"""Similarity of a drafter's own answer to the target's: the seed paper's statistics, by standard libraries."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

STATISTICS = ("rouge_l", "bleu", "overlap")


def alignment(target: str, own: str, target_tokens: Sequence[int], own_tokens: Sequence[int]) -> dict[str, float]:
    """ROUGE-L (F1), BLEU and token overlap (F1) of two texts and their token ids; in [0, 1], 1 for equal ones."""
    from sacrebleu import sentence_bleu

    return {
        "rouge_l": float(_scorer().score(target, own)["rougeL"].fmeasure),
        "bleu": float(sentence_bleu(own, [target]).score) / 100,
        "overlap": _overlap(target_tokens, own_tokens),
    }


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])


def _overlap(one: Sequence[int], other: Sequence[int]) -> float:
    """F1 of the tokens as multisets: twice the intersection over the sum of lengths."""
    common = sum((Counter(one) & Counter(other)).values())
    return 2 * common / max(len(one) + len(other), 1)
