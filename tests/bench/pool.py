"""What a pool gains: `python -m tests.bench.pool --prompts FILE --split dev --name dev --json-file FILE`.

Engines with the same target, each in a process with one thread: without a drafter, with one, and a pool that starts
from its own prior. Blocks of prompts are answered by every engine in turn, in random order, so many at once; half of
the prompts are sampled at temperature 0.7 and top_p 0.9. A block's time is the processor's, so that other processes
hardly matter, and its speed tokens a second. Figures, ratios of speeds over all blocks, brackets 95 % bootstrap:

- `NAME/pool_vs_best_single/N`: the pool to the best engine with one drafter or none, N at once;
- `NAME/E_vs_plain/N`, and of greedy and sampled prompts apart: each engine to the one without a drafter;
- `NAME/worst_kind_vs_plain`: the pool on the kind of prompts where it is slowest, one at a time.
"""

import argparse
import dataclasses
import hashlib
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from draftpick.deploy.console import progress_bar
from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.deploy.workflows.results import merge_into, write
from draftpick.engines.config import Engine, FleetConfig
from draftpick.engines.models.paths import target_path
from draftpick.engines.pool.forecast import XARG, Forecast
from draftpick.engines.pool.prediction import XARG as PREDICTION
from draftpick.engines.vllm.arguments import engine_arguments
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.workloads import Prompt
from draftpick.router.config.router_config import DraftpickConfig, load_config
from tests.bench.figures import bootstrap_ratio
from tests.bench.real_text import select

PLAIN, POOL = "plain", "pool"
HEAD = {"method": "eagle3", "model": "embedded:general"}
SUFFIX = {"method": "suffix", "num_speculative_tokens": 8, "suffix_decoding_max_cached_requests": 0}
WARM_UP = 4
"""Prompts that each engine answers before the first measurement, as many at once as later."""


@dataclasses.dataclass(frozen=True)
class Block:
    """Answers of one engine to some prompts at once; `predicted`: what came of their predictions."""

    seconds: float
    tokens: int
    reports: list[dict[str, Any]]
    predicted: list[dict[str, int]]

    @property
    def token_s(self) -> float:
        return self.seconds / self.tokens


def main() -> None:
    parser = prompt_options(__doc__)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    config = fleet(max(args.at_once))
    prepare_models(config)
    prompts = select(args.prompts, args.split, args.kinds, args.n, args.max_tokens)
    digest = hashlib.sha256(args.prompts.read_bytes()).hexdigest()
    facts = {"file": args.prompts.name, "sha256": digest, "n": len(prompts), "max_tokens": args.max_tokens}
    source = {f"{args.name}/{key}": value for key, value in facts.items()}
    with Engines(config) as engines:
        for at_once in args.at_once:
            measured = measure(engines, prompts, at_once)
            judged = judge(measured, prompts, at_once)
            print(f"{at_once} at once: {shares(measured[POOL])}")
            for name, figure in judged.items():
                print(f"{name:36} {figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]", flush=True)
            figures = {f"{args.name}/{name}": figure for name, figure in judged.items()}
            if args.json_file is None:
                continue
            if args.json_file.exists():
                merge_into(args.json_file, figures, sets=source)
            else:
                write(args.json_file, len(prompts), figures, bracket="95 % bootstrap over prompts", sets=source)


def prompt_options(description: str | None) -> argparse.ArgumentParser:
    """A parser of the options that say which prompts are answered."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True, help="a file of prompts with kinds and sources")
    parser.add_argument("--split", required=True, choices=("dev", "transfer"))
    parser.add_argument("--name", required=True, help="prefix of the figures")
    parser.add_argument("--kinds", type=int, default=12)
    parser.add_argument("-n", type=int, default=4, help="prompts of each kind")
    parser.add_argument("--max-tokens", type=int, default=128, help="answers end by themselves or here")
    return parser


def fleet(at_once: int) -> DraftpickConfig:
    """The engines that are compared."""
    named = [{"name": "general", **HEAD, "num_speculative_tokens": 4}, {"name": "suffix", **SUFFIX}]
    head = {**HEAD, "num_speculative_tokens": 3, "use_local_argmax_reduction": True, "draft_exit": True}
    return load_config(
        {
            "engines": [
                {"name": PLAIN},
                {"name": "suffix", "drafter": SUFFIX},
                {"name": "general", "drafter": head},
                {"name": POOL, "drafters": named},
            ],
            "engine_kwargs": {
                "enforce_eager": True,
                "max_model_len": 1536,
                "max_num_batched_tokens": 2048,
                "max_num_seqs": at_once,
                "kv_cache_memory_bytes": 2**20 * max(96, 48 * at_once),
            },
            "router": {"policy": "uniform", "default_engine": PLAIN},
        }
    )


class Engines:
    """The engines of a fleet in processes of their own; a call answers prompts on one of them."""

    def __init__(self, config: FleetConfig) -> None:
        self._config = config
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> "Engines":
        os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
        spawn = multiprocessing.get_context("spawn")
        for engine in self._config.engines:
            here, there = spawn.Pipe()
            spawn.Process(target=_serve, args=(self._config, engine, there), daemon=True).start()
            there.close()  # so that an engine that dies ends the measurement
            self._connections[engine.name] = here
        for connection in self._connections.values():
            connection.recv()
        return self

    def __exit__(self, *error: object) -> None:
        for connection in self._connections.values():
            connection.send(None)

    @property
    def names(self) -> list[str]:
        return list(self._connections)

    def answer(
        self,
        name: str,
        prompts: Sequence[Prompt],
        at_once: int,
        forecast: Forecast | None = None,
        prediction: str | None = None,
    ) -> Block:
        """Answer prompts on one engine, so many at once, all with one forecast and one prediction."""
        extra = {} if forecast is None else {XARG: forecast.to_json()}
        extra |= {} if prediction is None else {PREDICTION: prediction}
        fields = [{**one.request_fields, "extra_args": extra or None} for one in prompts]
        self._connections[name].send((fields, at_once))
        block: Block = self._connections[name].recv()
        return block


def measure(engines: Engines, prompts: Sequence[Prompt], at_once: int) -> dict[str, list[Block]]:
    """Return the blocks of every engine, in the same order."""
    size = at_once if at_once == 1 else 2 * at_once
    blocks = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    blocks = [block for block in blocks if len(block) == size] or [prompts]
    found: dict[str, list[Block]] = {name: [] for name in engines.names}
    order = Random(0)
    for name in engines.names:
        engines.answer(name, prompts[: max(WARM_UP, at_once)], at_once)
    with progress_bar() as bar:
        row = bar.add_task(f"{at_once} at once", total=len(blocks))
        for block in blocks:
            for name in order.sample(engines.names, len(engines.names)):
                found[name].append(engines.answer(name, block, at_once))
            bar.advance(row)
    return found


def _serve(config: FleetConfig, engine: Engine, connection: Connection) -> None:
    from vllm import LLM, EngineArgs, SamplingParams

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    arguments = {key: value for key, value in engine_arguments(config, engine).items() if key in known}
    llm = LLM(model=target_path(config.target), enable_prefix_caching=False, disable_log_stats=True, **arguments)
    tokenizer = llm.get_tokenizer()
    connection.send("ready")
    while (asked := connection.recv()) is not None:
        requests, at_once = asked
        waiting = [
            (
                tokenizer.apply_chat_template(fields["messages"], add_generation_prompt=True, return_dict=False),
                SamplingParams(
                    temperature=fields["temperature"],
                    top_p=fields["top_p"],
                    max_tokens=fields["max_tokens"],
                    detokenize=False,
                    extra_args=fields["extra_args"],
                ),
            )
            for fields in requests
        ]
        connection.send(_answer(llm.llm_engine, waiting, at_once))


def _answer(engine: Any, waiting: list[tuple[list[int], Any]], at_once: int) -> Block:
    """Answer all requests, a new one as soon as one ends."""
    from draftpick.engines.vllm.pool_reports import reports_of
    from draftpick.engines.vllm.predictions import KEY

    tokens, reports, predicted = 0, [], []
    names = iter(range(len(waiting)))
    began = time.process_time()
    while waiting or engine.has_unfinished_requests():
        while waiting and engine.get_num_unfinished_requests() < at_once:
            ids, params = waiting.pop(0)
            engine.add_request(str(next(names)), {"prompt_token_ids": ids[-1400:]}, params)
        for output in engine.step():
            if output.finished:
                tokens += len(output.outputs[0].token_ids)
                reports.append(reports_of(output))
                if (found := getattr(output.outputs[0].spec_decode_metrics, KEY, None)) is not None:
                    predicted.append(found)
    return Block(time.process_time() - began, tokens, reports, predicted)


def judge(measured: Mapping[str, list[Block]], prompts: Sequence[Prompt], at_once: int) -> dict[str, Interval]:
    """Return the figures of one number of requests at once."""
    token_s = {name: np.asarray([block.token_s for block in blocks]) for name, blocks in measured.items()}
    singles = [name for name in measured if name != POOL]
    best = min(singles, key=lambda name: float(token_s[name].sum()))
    figures = {f"pool_vs_best_single/{at_once}": bootstrap_ratio(token_s[best], token_s[POOL])}
    for name in measured:
        if name != PLAIN:
            figures[f"{name}_vs_plain/{at_once}"] = bootstrap_ratio(token_s[PLAIN], token_s[name])
    if at_once > 1:
        return figures
    for mode, sampled in (("greedy", False), ("sampled", True)):
        rows = np.asarray([(prompt.temperature > 0) == sampled for prompt in prompts])
        for name in (*singles, POOL):
            if name != PLAIN:
                figures[f"{name}_vs_plain/{mode}"] = bootstrap_ratio(token_s[PLAIN][rows], token_s[name][rows])
    kinds = defaultdict(list)
    for row, prompt in enumerate(prompts):
        kinds[prompt.kind].append(row)
    for kind, rows_of_kind in kinds.items():
        figures[f"{kind}/pool_vs_plain"] = bootstrap_ratio(token_s[PLAIN][rows_of_kind], token_s[POOL][rows_of_kind])
    worst = min((figures[f"{kind}/pool_vs_plain"] for kind in kinds), key=lambda one: one.value)
    return {**figures, "worst_kind_vs_plain": worst}


def shares(blocks: Sequence[Block]) -> dict[str, float]:
    """Share of a pool's steps by drafter."""
    steps: dict[str, int] = defaultdict(int)
    for report in (report for block in blocks for report in block.reports):
        for name, one in report.items():
            steps[name] += one["steps"]
    return {name: round(count / max(1, sum(steps.values())), 2) for name, count in steps.items()}


if __name__ == "__main__":
    main()
