"""Does a drafter leave the target's distribution alone? `python -m tests.bench.sampling --json-file FILE`.

A target of 64 tokens answers one prompt thousands of times at temperature 1 under each drafter. The exact distribution
of each of its first tokens is known, so each place gives a chi-square test; a drafter's p-value is that of its worst
place, times the number of places (Bonferroni). A lossless drafter is below 0.001 once in a thousand runs.
"""

import argparse
import dataclasses
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from draftpick.deploy.workflows.results import write
from draftpick.engines.config import FleetConfig
from draftpick.engines.deployment import llm_config
from draftpick.engines.pool.forecast import MAX_WEIGHT, XARG, Forecast
from draftpick.policy_training.evaluation.evaluate import Interval
from tests.engines.drafters.tiny import VOCABULARY, write_head, write_noisy_copy, write_target
from tests.vllm_process import vllm_process

PROMPT = [3, 9, 27, 3, 9, 40, 3, 9, 27, 5, 3, 9]
PLACES = 3
LENGTH = 8
"""Tokens of an answer: longer than what is tested, so that the drafts there are not cut short."""

_HEAD = {"method": "eagle3", "num_speculative_tokens": 3}
_MODEL = {"method": "draft_model", "num_speculative_tokens": 3}
_SAMPLED = {"draft_sample_method": "probabilistic"}
_POOL = [
    {**_HEAD, "name": "one", "model": "head"},
    {**_HEAD, "name": "two", "model": "other_head", "num_speculative_tokens": 2},
    {"name": "suffix", "method": "suffix", "num_speculative_tokens": 4, "suffix_decoding_max_cached_requests": 0},
    {"name": "ngram", "method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1},
    {"name": "trigram", "method": "trigram", "num_speculative_tokens": 4},
    {"name": "hybrid", "method": "hybrid", "num_speculative_tokens": 4},
]
"""Every other request is pinned to one of them, and greedy requests are among them, so that batches mix all."""
DRAFTERS: dict[str, dict[str, Any] | list[dict[str, Any]] | None] = {
    "none": None,
    "ngram": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1},
    "suffix": {"method": "suffix", "num_speculative_tokens": 4, "suffix_decoding_max_cached_requests": 0},
    "trigram": {"method": "trigram", "num_speculative_tokens": 4},
    "hybrid": {"method": "hybrid", "num_speculative_tokens": 4},
    "draft_model": {**_MODEL, "model": "drafter"},
    "draft_model, sampled drafts": {**_MODEL, "model": "drafter", **_SAMPLED},
    "eagle3": {**_HEAD, "model": "head"},
    "eagle3, draft exit": {**_HEAD, "model": "head", "draft_exit": True},
    "eagle3, sampled drafts": {**_HEAD, "model": "head", **_SAMPLED},
    "pool": _POOL,
    "eagle3, parallel": {**_HEAD, "model": "parallel", "parallel_drafting": True},
    "eagle3, parallel, sampled drafts": {**_HEAD, "model": "parallel", "parallel_drafting": True, **_SAMPLED},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=8000, help="answers of each drafter")
    parser.add_argument("--drafters", nargs="+", choices=DRAFTERS, default=list(DRAFTERS), help="these alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    figures: dict[str, Interval] = {}
    with tempfile.TemporaryDirectory() as folder, vllm_process() as process:
        process.submit(make_models, Path(folder)).result()
        for name in args.drafters:
            p, accepted = process.submit(judge, Path(folder), name, args.n, args.seed).result()
            figures[f"p_value/{name}"] = Interval(p, p, p)
            figures[f"accepted_share/{name}"] = Interval(accepted, accepted, accepted)
            print(f"{name:34} p {p:.3f}   accepted {accepted:.2f} of its drafted tokens", flush=True)
    worst = min(figure.value for name, figure in figures.items() if name.startswith("p_value"))
    figures["smallest_p_value"] = Interval(worst, worst, worst)
    if args.json_file:
        write(args.json_file, args.n, figures)


def make_models(folder: Path) -> None:
    """The target and the drafters that need weights."""
    write_target(folder / "target", layers=7, head_dim=32, spread=6)
    write_noisy_copy(folder / "target", folder / "drafter")
    write_head(folder / "target", folder / "head", parallel=False)
    write_head(folder / "target", folder / "other_head", parallel=False, seed=3)
    write_head(folder / "target", folder / "parallel", parallel=True)


def judge(folder: Path, name: str, n: int, seed: int = 0) -> tuple[float, float]:
    """(p-value of the worst place, share of the drafted tokens that were accepted) of one drafter."""
    from scipy.stats import chisquare

    answers, drafted, accepted = _answers(folder, DRAFTERS[name], n, seed)
    counts = [np.bincount(column, minlength=VOCABULARY) for column in np.asarray(answers)[:, :PLACES].T]
    expected = exact(folder / "target")
    p = min(chisquare(*_pooled(seen, n * share)).pvalue for seen, share in zip(counts, expected, strict=True))
    return min(1.0, PLACES * float(p)), accepted / max(drafted, 1)


@cache
def exact(target: Path) -> np.ndarray[Any, Any]:
    """The probability of each token at each of the first places, [places, vocabulary]."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    texts, weights = torch.tensor([PROMPT]), torch.ones(1, dtype=torch.float64)
    shares = []
    for _ in range(PLACES):
        with torch.inference_mode():
            p = model(input_ids=texts).logits[:, -1].double().softmax(-1) * weights[:, None]
        shares.append(p.sum(0).numpy())
        weights = p.flatten()
        texts = torch.cat(
            [texts.repeat_interleave(VOCABULARY, 0), torch.arange(VOCABULARY).repeat(len(texts))[:, None]], 1
        )
    return np.asarray(shares)


def _pooled(seen: Any, expected: Any) -> tuple[Any, Any]:
    """Tokens that are expected fewer than five times are one class."""
    rare = expected < 5
    pool = lambda x: np.append(x[~rare], x[rare].sum()) if rare.any() else x  # noqa: E731
    return pool(seen), pool(expected) * (seen.sum() / expected.sum())


def _answers(folder: Path, drafter: Any, n: int, seed: int) -> tuple[list[list[int]], int, int]:
    """(answers, tokens drafted, tokens accepted) of one engine."""
    from vllm import LLM, EngineArgs, SamplingParams

    pool = isinstance(drafter, list)
    drafters = [_located(one, folder) for one in (drafter if pool else [drafter]) if one is not None]
    drafted_by = {"drafters": drafters} if pool else {"drafter": drafters[0] if drafters else None}
    fleet = FleetConfig.model_validate(
        {
            "target": {"source": str(folder / "target")},
            "engine_kwargs": {"enforce_eager": True, "max_model_len": 64, "kv_cache_memory_bytes": 2**26},
            "engines": [{"name": "plain"}, {"name": "drafted", **drafted_by}],
        }
    )
    known = {field.name for field in dataclasses.fields(EngineArgs)}
    kwargs = {k: v for k, v in llm_config(fleet, fleet.engines[1])["engine_kwargs"].items() if k in known}
    kwargs |= {"dtype": "float32", "skip_tokenizer_init": True, "enable_prefix_caching": False, "max_num_seqs": 256}
    llm = LLM(model=fleet.target.source, seed=seed, **kwargs, disable_log_stats=False)
    pins = [one["name"] for one in drafters] if pool else []
    greedy = [pool and i % 5 == 4 for i in range(n + n // 4 if pool else n)]
    params = [
        SamplingParams(
            temperature=0.0 if greedy[i] else 1.0,
            max_tokens=LENGTH,
            ignore_eos=True,
            detokenize=False,
            extra_args={XARG: _pin(pins[i // 2 % len(pins)])} if pins and i % 2 else None,
        )
        for i in range(len(greedy))
    ]
    done = llm.generate([{"prompt_token_ids": PROMPT}] * len(greedy), params, use_tqdm=False)
    counters = {m.name: m.value for m in llm.get_metrics() if hasattr(m, "value")}
    drafted, accepted = (counters.get(f"vllm:spec_decode_num_{what}_tokens", 0) for what in ("draft", "accepted"))
    sampled = [list(one.outputs[0].token_ids) for one, is_greedy in zip(done, greedy, strict=True) if not is_greedy]
    return sampled, int(drafted), int(accepted)


def _pin(name: str) -> str:
    """A forecast by which a drafter drafts alone, and in nearly every step of a short answer."""
    return Forecast({name: 4.0}, MAX_WEIGHT, only=name).to_json()


def _located(drafter: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {**drafter, "model": str(folder / drafter["model"])} if "model" in drafter else drafter


if __name__ == "__main__":
    main()
