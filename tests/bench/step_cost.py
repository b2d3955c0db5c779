"""What a step costs: `python -m tests.bench.step_cost --prompts FILE --json-file FILE`.

Engines of the embedded fleet, each in a process with one thread, answer the same prompts in turn, greedily and at
temperature 0.7 and top_p 0.9. A step's cost is its processor time, so that other processes hardly matter; prefills are
left out. `NAME:K` is an engine with another draft length. Figures, as ratios of sums over answers:

- `sampled_step_ratio/E`: a sampled step to a greedy one of the same engine; `sampled_step_ratio`: the highest of them;
- `step/E/MODE`: a step to one of `plain`; `speed/E/MODE`: tokens a second to those of `plain`;
- `drafted_token_cost/E`: what each of up to k drafted tokens adds to a greedy step, in steps of `plain`, for EAGLE
  heads, which draft fewer where they are not confident; `drafted_token_cost`: of `general` as it ships;
- `E_idle_step`: a step of `suffix` or `hybrid` to one of `plain` on answers that suffix decoding cannot predict, that
  is, its full-length drafts gain at most 0.1 tokens a step; `E_copy_speed`: speed where they gain 1 or more.
"""

import argparse
import dataclasses
import gzip
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, islice, zip_longest
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from draftpick.deploy.config import resolve
from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.deploy.workflows.results import write
from draftpick.engines.config import Drafter, Engine, FleetConfig
from draftpick.engines.deployment import llm_config
from draftpick.engines.drafters.replay import model_free_drafter, replay_drafter
from draftpick.engines.models.paths import target_path
from draftpick.policy_training.evaluation.evaluate import Interval
from tests.bench.figures import bootstrap_ratio

PLAIN = "plain"
MODES: Mapping[str, dict[str, float]] = {"greedy": {"temperature": 0.0}, "sampled": {"temperature": 0.7, "top_p": 0.9}}
LONGEST = 800
"""Tokens of a prompt; longer ones are left out."""
IDLE, COPIED = 0.1, 1.0
_SUFFIX = {"method": "suffix", "num_speculative_tokens": 8, "suffix_decoding_max_cached_requests": 0, "token_cost": 0}


@dataclasses.dataclass(frozen=True)
class Answer:
    """The decoding steps of one answer, without the first one, which reads the prompt."""

    seconds: float
    steps: int
    tokens: list[int]


Answers = Mapping[str, Mapping[str, list[Answer]]]
"""By engine and mode, one for each prompt."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--prompts", type=Path, required=True, help="JSON lines with `prompt` or `messages`, and `kind`"
    )
    parser.add_argument("--split", help="take lines of this `split` only")
    parser.add_argument("--engines", nargs="+", default=[PLAIN, "suffix", "hybrid", "general"], metavar="NAME[:K]")
    parser.add_argument("-n", type=int, default=16, help="prompts, in rounds of all kinds")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    fleet = resolve("seven")
    prepare_models(fleet)
    names = [PLAIN, *(name for name in args.engines if name != PLAIN)]
    prompts = select(args.prompts, args.split, args.n, target_path(fleet.target))
    measured = measure(fleet, names, prompts, args.max_tokens)
    drafter = model_free_drafter(Drafter.model_validate(_SUFFIX), 8)
    gained = [[_gain(drafter, *pair) for pair in zip(prompts, measured[PLAIN][mode], strict=True)] for mode in MODES]
    figures = judge(measured, np.asarray(gained))
    print(f"{(np.asarray(gained) <= IDLE).sum()} answers idle, {(np.asarray(gained) >= COPIED).sum()} copied")
    for name, figure in figures.items():
        print(f"{name:32} {figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]")
    if args.json_file:
        digest = hashlib.sha256(args.prompts.read_bytes()).hexdigest()
        source = {"sha256": digest, "split": args.split, "max_tokens": args.max_tokens}
        write(args.json_file, len(prompts), figures, bracket="95 % bootstrap over prompts", prompts=source)


def select(path: Path, split: str | None, n: int, target: str) -> list[list[int]]:
    """Return the token ids of `n` prompts, drawn by a fixed seed, in rounds of all kinds."""
    from transformers import AutoTokenizer

    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        rows = [row for row in map(json.loads, file) if split is None or row["split"] == split]
    Random(0).shuffle(rows)
    kinds = [list(of) for _, of in groupby(sorted(rows, key=lambda row: row["kind"]), key=lambda row: row["kind"])]
    tokenizer = AutoTokenizer.from_pretrained(target)
    every = (
        tokenizer.apply_chat_template(
            row.get("messages") or [{"role": "user", "content": row["prompt"]}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for row in (row for turn in zip_longest(*kinds) for row in turn if row is not None)
    )
    return list(islice((ids for ids in every if len(ids) <= LONGEST), n))


def measure(fleet: FleetConfig, names: Sequence[str], prompts: list[list[int]], max_tokens: int) -> Answers:
    """Let every engine answer each prompt in each mode, one after the other."""
    os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    engines = {name: _start(fleet, name) for name in names}
    answers: dict[str, dict[str, list[Answer]]] = {name: {mode: [] for mode in MODES} for name in names}
    for number, ids in enumerate([prompts[0], *prompts]):
        for mode, params in MODES.items():
            for name in names:
                engines[name].send((ids, {**params, "max_tokens": max_tokens, "ignore_eos": True}))
                answer = engines[name].recv()
                if number > 0:  # the first is a warm-up
                    answers[name][mode].append(answer)
    for connection in engines.values():
        connection.send(None)
    return answers


def _start(fleet: FleetConfig, name: str) -> Connection:
    """Start an engine; an `Answer` comes for each (token ids, sampling parameters)."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    spawn.Process(target=_serve, args=(fleet, _engine(fleet, name), there), daemon=True).start()
    there.close()  # so that an engine that dies ends the measurement
    return here


def _engine(fleet: FleetConfig, name: str) -> Engine:
    """The engine of this name, `NAME:K` with draft length K."""
    name, _, k = name.partition(":")
    engine = next(engine for engine in fleet.engines if engine.name == name)
    if not k or engine.drafter is None:
        return engine
    return engine.model_copy(update={"drafter": engine.drafter.model_copy(update={"num_speculative_tokens": int(k)})})


def _serve(fleet: FleetConfig, engine: Engine, connection: Connection) -> None:
    from vllm import LLM, EngineArgs, SamplingParams

    config = llm_config(fleet, engine)
    known = {field.name for field in dataclasses.fields(EngineArgs)}
    kwargs = {k: v for k, v in config["engine_kwargs"].items() if k in known}
    kwargs |= {"enable_prefix_caching": False, "disable_log_stats": True, "max_num_seqs": 4}
    llm = LLM(model=config["model_loading_config"]["model_source"], **kwargs)
    while (asked := connection.recv()) is not None:
        ids, params = asked
        connection.send(_answer(llm.llm_engine, ids, SamplingParams(**params, detokenize=False)))


def _answer(engine: Any, ids: list[int], params: Any) -> Answer:
    engine.add_request("0", {"prompt_token_ids": ids}, params)
    seconds, steps, tokens = 0.0, 0, list[int]()
    while engine.has_unfinished_requests():
        began = time.process_time()
        outputs = engine.step()
        if tokens:
            seconds, steps = seconds + time.process_time() - began, steps + 1
        tokens = list(outputs[0].outputs[0].token_ids) if outputs else tokens
    return Answer(seconds, steps, tokens)


def _gain(drafter: Any, ids: list[int], answer: Answer) -> float:
    """Tokens that a full-length suffix draft gains a step of this answer."""
    replayed = replay_drafter(drafter, np.asarray(ids, np.int32), np.asarray(answer.tokens, np.int32))
    return replayed.acceptance_length - 1


def judge(measured: Answers, gained: Any) -> dict[str, Interval]:
    """Return all figures; `gained` [modes, prompts] are the tokens that full-length suffix drafts gain a step."""
    step_s = {name: _each(of, lambda answer: answer.seconds / answer.steps) for name, of in measured.items()}
    token_s = {
        name: _each(of, lambda answer: answer.seconds / (len(answer.tokens) - 1)) for name, of in measured.items()
    }
    figures = {
        f"sampled_step_ratio/{name}": bootstrap_ratio(sampled, greedy) for name, (greedy, sampled) in step_s.items()
    }
    for name in list(measured)[1:]:
        for row, mode in enumerate(MODES):
            figures[f"step/{name}/{mode}"] = bootstrap_ratio(step_s[name][row], step_s[PLAIN][row])
            figures[f"speed/{name}/{mode}"] = bootstrap_ratio(token_s[PLAIN][row], token_s[name][row])
        drafter = _engine(resolve("seven"), name).drafter
        if drafter is not None and drafter.method == "eagle3":
            step = dataclasses.astuple(figures[f"step/{name}/greedy"])
            figures[f"drafted_token_cost/{name}"] = Interval(*((x - 1) / drafter.num_speculative_tokens for x in step))
    figures["sampled_step_ratio"] = max(
        (figures[f"sampled_step_ratio/{name}"] for name in step_s), key=lambda one: one.value
    )
    if "drafted_token_cost/general" in figures:
        figures["drafted_token_cost"] = figures["drafted_token_cost/general"]
    idle, copied = gained <= IDLE, gained >= COPIED
    for name in ("suffix", "hybrid"):
        if name in measured and idle.any():
            figures[f"{name}_idle_step"] = bootstrap_ratio(step_s[name][idle], step_s[PLAIN][idle])
        if name in measured and copied.any():
            figures[f"{name}_copy_speed"] = bootstrap_ratio(token_s[PLAIN][copied], token_s[name][copied])
    return figures


def _each(answers: Mapping[str, Sequence[Answer]], value: Callable[[Answer], float]) -> Any:
    """The value of each answer, [modes, prompts]."""
    return np.asarray([[value(answer) for answer in answers[mode]] for mode in MODES])


if __name__ == "__main__":
    main()
