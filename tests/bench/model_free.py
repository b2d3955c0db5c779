"""Tri-gram search and hybrid on the target's own answers: `python -m tests.bench.model_free --json-file FILE`.

Acceptance by replay (exact under greedy decoding), cost of proposing by the clock, both beside the cost of a decoding
step of the target in vLLM at the same batch size.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from draftpick.deploy.workflows.drafter_corpus import Corpus, answers_of, target_folder
from draftpick.deploy.workflows.results import write
from draftpick.engines.drafter_options import HybridOptions, TrigramOptions
from draftpick.engines.drafters.hybrid import HybridProposer
from draftpick.engines.drafters.proposer import Drafter
from draftpick.engines.drafters.replay import replay_drafter
from draftpick.engines.drafters.request_tracking import RequestTracker
from draftpick.engines.drafters.training.responses import Responses
from draftpick.engines.drafters.trigram.proposer import TrigramProposer
from draftpick.engines.drafters.trigram.table import save_table, table_of
from draftpick.policy_training.evaluation.bootstrap import Bootstrap, bounds
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.workloads import GENERATED, KINDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=40, help="prompts a kind; half of the answers make the starting table")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    answers = answers_of(Corpus((GENERATED,), n=args.n, max_tokens=args.max_tokens))
    kinds = np.repeat(KINDS, args.n)
    judged = np.arange(1, len(answers), 2)
    table = Path("runs/model-free/table.safetensors")
    save_table(table_of(answers.answer_tokens()[::2], 65_536), table, 49_152)
    figures: dict[str, Interval] = {}
    for name, drafter in variants(str(table)).items():
        taus = np.asarray([tau(drafter, answers, i) for i in judged])
        figures[f"acceptance_length/{name}"] = spread(taus)
        by_kind = {kind: float(taus[kinds[judged] == kind].mean()) for kind in KINDS}
        print(f"{name:24} tau {taus.mean():.3f}  " + "  ".join(f"{k} {v:.2f}" for k, v in by_kind.items()), flush=True)
    steps = {batch: step_s(batch) for batch in (1, 32)}
    for name, drafter in variants(str(table)).items():
        for batch, step in steps.items():
            costs = [propose_s(drafter, answers, batch) / step for _ in range(args.repeats)]
            figures[f"propose_share_of_step/{name}/batch_{batch}"] = Interval(
                float(np.mean(costs)), min(costs), max(costs)
            )
            print(f"{name:24} batch {batch:2}: proposing takes {np.mean(costs):.2%} of a step", flush=True)
    if args.json_file:
        write(args.json_file, len(judged), figures, step_ms={str(b): round(1000 * s, 2) for b, s in steps.items()})


def variants(table: str) -> dict[str, Drafter]:
    """Every search with the starting table and without, and the hybrid with its parts alone."""
    made: dict[str, Drafter] = {}
    for search in ("tree", "greedy", "full"):
        made[f"trigram/{search}"] = TrigramProposer.build(TrigramOptions(search=search), 4)  # type: ignore[arg-type]
        options = TrigramOptions(search=search, table=table)  # type: ignore[arg-type]
        made[f"trigram/{search}+table"] = TrigramProposer.build(options, 4)
    for parts in (("ngram",), ("suffix",), ("trigram",), ("ngram", "suffix", "trigram")):
        name = "hybrid" if len(parts) > 1 else f"hybrid/{parts[0]} alone"
        made[name] = HybridProposer.build(HybridOptions(parts=parts, trigram=TrigramOptions(table=table)), 8)  # type: ignore[arg-type]
    return made


def tau(drafter: Drafter, answers: Responses, i: int) -> float:
    """Acceptance length on answer i."""
    sequence = answers.tokens[answers.starts[i] : answers.starts[i + 1]]
    return replay_drafter(drafter, sequence[: answers.answer_at[i]], sequence[answers.answer_at[i] :]).acceptance_length


def propose_s(drafter: Drafter, answers: Responses, batch: int) -> float:
    """Seconds that proposing for a batch takes in one decoding step, the rows' bookkeeping with it."""
    sequences = [answers.tokens[answers.starts[i] : answers.starts[i + 1]] for i in range(batch)]
    lengths = np.asarray([answers.answer_at[i] + 1 for i in range(batch)])
    rows = np.zeros((batch, 2048), np.int32)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence)] = sequence
    followed = RequestTracker(2048, lambda tokens, _: drafter.start(tokens), drafter.end)
    steps = min(min(len(s) - n for s, n in zip(sequences, lengths, strict=True)), 30)
    took = []
    for _ in range(max(2, steps)):
        began = time.perf_counter()
        for _row, state, tokens, new in followed.sync([[1]] * batch, lengths, rows):
            if new:
                drafter.learn(state, tokens, new)
            drafter.draft(state, tokens, 8)
        took.append(time.perf_counter() - began)
        lengths = lengths + 1
    return float(np.median(took[1:]))


def step_s(batch: int) -> float:
    """Seconds of one decoding step of the target without a drafter, in vLLM at this batch size."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(target_folder("embedded")),
        enforce_eager=True,
        max_model_len=2048,
        max_num_seqs=batch,
        kv_cache_memory_bytes=2**28,
    )
    took = []
    for tokens in (2, 34, 2, 34, 2, 34):
        began = time.perf_counter()
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        llm.generate(["Once upon a time"] * batch, params, use_tqdm=False)
        took.append(time.perf_counter() - began)
    del llm
    return float(np.median([(long - short) / 32 for short, long in zip(took[::2], took[1::2], strict=True)]))


def spread(values: np.ndarray) -> Interval:
    """Mean with its 95 % interval by bootstrap."""
    draws = Bootstrap.of_places(len(values), 2000, np.random.default_rng(0))
    return Interval(float(values.mean()), *map(float, bounds(draws.sums(values) / len(values))))


if __name__ == "__main__":
    main()
