"""Does every engine give plain's tokens? `python -m tests.bench.lossless --json-file FILE`.

Greedy answers of every engine of a fleet, in float32 and in bfloat16, batched as the engine's own limits allow; the
share of prompts whose tokens are identical to the plain engine's.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from draftpick.deploy.config import resolve
from draftpick.deploy.workflows.results import write
from draftpick.engines.deployment import llm_config
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.workloads import generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="embedded")
    parser.add_argument("-n", type=int, default=102)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--max-num-seqs", type=int, help="requests in a batch; the engine's own limit by default")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--json-file", type=Path)
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.answer:
        print(json.dumps(answers(json.loads(args.answer))))
        return
    figures: dict[str, Interval] = {}
    differing: dict[str, list[int]] = {}
    for dtype in args.dtypes:
        plain, *others = (_in_process(job) for job in jobs(args, dtype))
        label = {"float32": "float32", "bfloat16": "bf16"}[dtype]
        shares = []
        for name, tokens in others:
            same = [a == b for a, b in zip(plain[1], tokens, strict=True)]
            shares.append(sum(same) / len(same))
            figures[f"{label}_identical_share/{name}"] = _exact(shares[-1])
            differing[f"{label}/{name}"] = [i for i, s in enumerate(same) if not s]
            print(f"{dtype:9} {name:8} identical to plain: {shares[-1]:.3f}", flush=True)
        figures[f"{label}_identical_share"] = Interval(min(shares), min(shares), max(shares))
    if args.json_file:
        write(args.json_file, args.n, figures, differing_prompts=differing)


def jobs(args: argparse.Namespace, dtype: str) -> list[dict[str, Any]]:
    """What each engine's process does; the plain engine first."""
    fleet = resolve(args.config)
    batch = {"max_num_seqs": args.max_num_seqs} if args.max_num_seqs else {}
    engines = sorted(fleet.engines, key=lambda e: e.drafter is not None)
    return [
        {
            "name": e.name,
            "n": args.n,
            "max_tokens": args.max_tokens,
            "source": (config := llm_config(fleet, e))["model_loading_config"]["model_source"],
            "engine_kwargs": {**config["engine_kwargs"], **batch, "dtype": dtype},
        }
        for e in engines
        if e.kind == "vllm"
    ]


def answers(job: dict[str, Any]) -> list[list[int]]:
    """Token ids of the greedy answers of one engine."""
    from vllm import LLM, EngineArgs, SamplingParams

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    kwargs = {k: v for k, v in job["engine_kwargs"].items() if k in known}
    llm = LLM(model=job["source"], **kwargs)
    params = SamplingParams(temperature=0.0, max_tokens=job["max_tokens"])
    chats: Any = [[{"role": "user", "content": p.text}] for p in generate(job["n"], seed=7, sampled_share=0.0)]
    return [list(answer.outputs[0].token_ids) for answer in llm.chat(chats, params, use_tqdm=False)]


def _in_process(job: dict[str, Any]) -> tuple[str, list[list[int]]]:
    """One engine in a process of its own, so that its memory is free for the next."""
    command = [sys.executable, "-m", "tests.bench.lossless", "--answer", json.dumps(job)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return job["name"], json.loads(result.stdout.strip().splitlines()[-1])


def _exact(value: float) -> Interval:
    return Interval(value, value, value)


if __name__ == "__main__":
    main()
