"""Is a pool exact? `python -m tests.bench.pool_exact --prompts FILE --split dev --json-file FILE`.

The embedded target in float32 with every drafter that ships with the project, in one engine. Three parts:

- `lossless`: greedy requests with random drafters, arrivals, lengths, aborts and prompts in the prefix cache, sampled
  ones among them, in a cache that is too small for all; the share whose tokens are those of an engine without drafters.
- `sampled`: the pool of tests/bench/sampling.py, whose target's distribution is known, with greedy requests among them.
- `acceptance`: each drafter alone in an engine of its own, and pinned in the pool among requests with other drafters;
  both draft all their tokens in every step. Also the share of drafts that remain the same when drafters rest in half of
  the steps by chance: what a head did not read in time it reads later.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.deploy.workflows.results import merge_into
from draftpick.engines.config import FleetConfig
from draftpick.engines.models.embedded import prepare_target
from draftpick.engines.pool.forecast import XARG, Forecast
from draftpick.policy_training.evaluation.evaluate import Interval
from tests.bench import sampling
from tests.bench.figures import bootstrap_ratio
from tests.bench.real_text import select
from tests.vllm_process import vllm_process

HEADS = ("general", "code", "math", "chat")
DRAFTERS: dict[str, dict[str, Any]] = {
    **{name: {"method": "eagle3", "model": f"embedded:{name}", "num_speculative_tokens": 4} for name in HEADS},
    "suffix": {"method": "suffix", "num_speculative_tokens": 8, "suffix_decoding_max_cached_requests": 0},
    "ngram": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 8, "prompt_lookup_min": 1},
    "trigram": {"method": "trigram", "num_speculative_tokens": 4},
    "hybrid": {"method": "hybrid", "num_speculative_tokens": 8},
}
MAX_MODEL_LEN, AT_ONCE = 512, 8
SEED = 27


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True, help="a file of prompts with kinds and sources")
    parser.add_argument("--split", default="dev", choices=("dev", "transfer"))
    parser.add_argument("--parts", nargs="+", default=["lossless", "sampled", "acceptance"])
    parser.add_argument("-n", type=int, default=200, help="greedy requests whose tokens are compared")
    parser.add_argument("--sampled", type=int, default=8000, help="sampled answers of the pool of a small target")
    parser.add_argument("--acceptance", type=int, default=16, help="prompts for each drafter alone and in the pool")
    parser.add_argument("--drafters", nargs="+", choices=DRAFTERS, default=list(DRAFTERS), help="of part `acceptance`")
    parser.add_argument("--json-file", type=Path, help="a result of tests.bench.pool, to which the figures are added")
    args = parser.parse_args()
    prepare_models(fleet())
    parts = {"lossless": lossless, "sampled": sampled, "acceptance": acceptance}
    for part in args.parts:
        figures, facts = parts[part](args)
        for name, figure in figures.items():
            print(f"{name:44} {figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]", flush=True)
        print(part, json.dumps(facts), flush=True)
        if args.json_file:
            merge_into(args.json_file, figures, sets={f"{part}/{name}": value for name, value in facts.items()})


def fleet() -> FleetConfig:
    """The engines that are compared."""
    suffix = {**DRAFTERS["suffix"], "token_cost": 0}  # never shorten: what is compared is the drafts
    alone = {**DRAFTERS, "suffix": suffix}
    return FleetConfig.model_validate(
        {
            "engines": [
                {"name": "plain"},
                {"name": "pool", "drafters": [{"name": name, **drafter} for name, drafter in DRAFTERS.items()]},
                *({"name": name, "drafter": drafter} for name, drafter in alone.items()),
            ],
            "engine_kwargs": {
                "dtype": "float32",
                "enforce_eager": True,
                "max_model_len": MAX_MODEL_LEN,
                "max_num_seqs": AT_ONCE,
                "block_size": 32,
                "enable_chunked_prefill": True,
                "max_num_batched_tokens": 256,
                "kv_cache_memory_bytes": 2**20 * 64,
            },
        }
    )


def lossless(args: argparse.Namespace) -> tuple[dict[str, Interval], dict[str, Any]]:
    """The share of greedy answers that are the target's own, and what was among the requests."""
    asked = requests_of(texts(args, 50), args.n)
    plain = answers("plain", [{**one, "abort_after": 0} for one in asked], logprobs=True)
    mixed = answers("pool", asked)
    compared, differing = 0, []
    for i, (one, other) in enumerate(zip(plain["tokens"], mixed["tokens"], strict=True)):
        if asked[i]["temperature"]:
            continue
        compared += 1
        length = len(other) if asked[i]["abort_after"] else max(len(one), len(other))
        if one[:length] != other:
            place = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))
            margin = plain["margins"][i][place] if place < len(plain["margins"][i]) else None
            differing.append({"request": i, "place": place, "margin": margin, "of": len(one)})
    share = 1 - len(differing) / compared
    facts = {
        "requests": compared,
        "tokens": sum(
            len(tokens) for one, tokens in zip(asked, mixed["tokens"], strict=True) if not one["temperature"]
        ),
        "sampled_among_them": len(asked) - compared,
        "aborted": sum(bool(one["abort_after"]) for one in asked),
        "prefix_hits": sum(cached > 0 for cached in mixed["cached"]),
        "preemptions": mixed["preemptions"],
        "at_model_length": sum(length >= MAX_MODEL_LEN for length in mixed["lengths"]),
        "steps_by_drafter": mixed["steps"],
        "kept_after": mixed["kept"],
        "differing": differing,
    }
    return {"float32_identical_share": Interval(share, share, share)}, facts


def requests_of(prompts: Sequence[list[int]], greedy: int) -> list[dict[str, Any]]:
    """Random requests: token ids, sampling, forecast, steps before it comes, tokens after which it is aborted."""
    random, asked = Random(SEED), []
    names = [*DRAFTERS, "none"]
    while greedy:
        ids = random.choice(prompts)[: random.randint(8, 300)]
        if asked and random.random() < 0.4:
            ids = [*random.choice(asked)["ids"], *ids[: random.choice((0, 0, 8, 40))]][: MAX_MODEL_LEN - 16]
        taus = {name: random.uniform(1, 4) for name in random.sample(names[:-1], 3)}
        weight, objective = random.choice((0, 4, 32)), random.choice(("latency", "throughput"))
        forecasts = [None, None, Forecast(taus, weight, objective), *[Forecast(only=random.choice(names))] * 3]  # type: ignore[arg-type]
        forecast = random.choice(forecasts)
        sampled, length = random.random() < 0.15, random.randint(1, 64)
        asked.append(
            {
                "ids": ids,
                "temperature": 0.8 if sampled else 0.0,
                "max_tokens": MAX_MODEL_LEN if random.random() < 0.03 else length,
                "extra_args": forecast and {XARG: forecast.to_json()},
                "after_steps": random.choice((0, 0, 1, 3, 8)),
                "abort_after": random.randint(1, length) if random.random() < 0.12 else 0,
            }
        )
        greedy -= not sampled
    return asked


def sampled(args: argparse.Namespace) -> tuple[dict[str, Interval], dict[str, Any]]:
    """The p-value of the sampled tokens of the small target's pool."""
    with tempfile.TemporaryDirectory() as folder, vllm_process() as process:
        process.submit(sampling.make_models, Path(folder)).result()
        p, accepted = process.submit(sampling.judge, Path(folder), "pool", args.sampled, SEED).result()
    figures = {"sampled/p_value": Interval(p, p, p), "sampled/accepted_share": Interval(accepted, accepted, accepted)}
    return figures, {"answers": args.sampled}


def acceptance(args: argparse.Namespace) -> tuple[dict[str, Interval], dict[str, Any]]:
    """Steps of each drafter in the pool against those in an engine of its own."""
    prompts = [ids[-160:] for ids in texts(args, args.acceptance)]
    asked = {name: [_pinned(ids, name) for ids in prompts] for name in args.drafters}
    random, order = Random(SEED), []
    for i in range(len(prompts)):
        order += [(name, i) for name in random.sample(args.drafters, len(args.drafters))]
    of_heads = [one for one in order if one[0] in HEADS]
    full = dict(
        zip(
            order,
            _rows(answers("pool", [asked[name][i] for name, i in order], controller="full", cache_bytes=2**28)),
            strict=True,
        )
    )
    rested: list[dict[str, list[int]]] = answers(
        "pool", [asked[name][i] for name, i in of_heads], controller="rests", cache_bytes=2**28
    )["drafts"]
    figures = {}
    for name in args.drafters:
        own = _rows(answers(name, asked[name], cache_bytes=2**28))
        pooled = [full[name, i] for i in range(len(prompts))]
        assert [one["tokens"] for one in own] == [one["tokens"] for one in pooled], f"answers of {name} differ"
        steps, own_steps = (np.asarray([float(one["counts"]) for one in each]) for each in (pooled, own))
        figures[f"acceptance/{name}/pool_vs_own"] = bootstrap_ratio(own_steps, steps)
        decoded = sum(len(one["tokens"]) - 1 for one in own)
        tau = decoded / float(own_steps.sum())
        figures[f"acceptance/{name}/tau"] = Interval(tau, tau, tau)
        print(f"{name:8} tau {tau:.3f}, steps {steps.sum():.0f} in the pool, {own_steps.sum():.0f} alone", flush=True)
    for name in HEADS:
        drafts = [
            (full[one]["drafts"][place], draft)
            for one, found in zip(of_heads, rested, strict=True)
            if one[0] == name
            for place, draft in found.items()
            if place in full[one]["drafts"]
        ]
        if drafts:
            share = sum(one[: len(other)] == other[: len(one)] for one, other in drafts) / len(drafts)
            figures[f"acceptance/{name}/same_drafts_after_rests"] = Interval(share, share, share)
    return figures, {"prompts": len(prompts), "tokens_of_each": decoded}


def _rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What an engine found, by request."""
    names = ("tokens", "counts", "drafts")
    return [dict(zip(names, values, strict=True)) for values in zip(*(found[name] for name in names), strict=True)]


def _pinned(ids: list[int], name: str) -> dict[str, Any]:
    pin = {XARG: Forecast(only=name).to_json()}
    return {"ids": ids, "temperature": 0.0, "max_tokens": 48, "extra_args": pin, "after_steps": 0, "abort_after": 0}


def texts(args: argparse.Namespace, n: int) -> list[list[int]]:
    """Token ids of prompts of a split, of as many kinds as there are."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(prepare_target())
    prompts = select(args.prompts, args.split, 50, -(-n // 12), 64)[:n]
    return [
        tokenizer.apply_chat_template(one.request_fields["messages"], add_generation_prompt=True, return_dict=False)
        for one in prompts
    ]


def answers(engine: str, asked: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """What tests/bench/pool_exact_engine.py finds, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        job = {"engine": engine, "asked": asked, **options}
        Path(folder, "job.json").write_text(json.dumps(job))
        subprocess.run([sys.executable, "-m", "tests.bench.pool_exact_engine", folder], check=True)
        found: dict[str, Any] = json.loads(Path(folder, "found.json").read_text())
    return found


if __name__ == "__main__":
    main()
