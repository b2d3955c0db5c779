"""The hybrid beside its parts, each in an engine of its own: `python -m tests.bench.hybrid --json-file FILE`.

Greedy requests alone: sampled ones get another text of every engine, and texts differ by more than what is sought here.
`worst_vs_best_part`: over the kinds of prompts, the least tokens/s of the hybrid against the best part of that kind.
"""

import argparse
from pathlib import Path
from typing import Any

from draftpick.deploy.config import resolve
from draftpick.deploy.console import out, progress_bar
from draftpick.deploy.workflows.drafter_benchmark import run_table
from draftpick.deploy.workflows.results import write
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.workloads import KINDS, generate, interleaved

PARTS: list[dict[str, Any]] = [
    {"method": "ngram", "num_speculative_tokens": 8, "prompt_lookup_max": 4, "prompt_lookup_min": 2},
    {"method": "suffix", "num_speculative_tokens": 8, "suffix_decoding_max_cached_requests": 0},
    {"method": "trigram", "num_speculative_tokens": 4},
]
HYBRID = "hybrid"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=36, help="prompts, of all kinds in turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/hybrid"))
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    drafters = [*PARTS, {"method": HYBRID, "num_speculative_tokens": 8}]
    engines = [{"name": "plain"}, *({"name": d["method"], "drafter": d} for d in drafters)]
    prompts = interleaved(generate(args.n, seed=1, sampled_share=0.0, max_tokens=args.max_tokens))
    figures = run_table(
        resolve({**resolve("embedded").model_dump(mode="json"), "engines": engines}), prompts, repeats=args.repeats,
        folder=args.output_dir, json_file=None, port=8000, seed=1, console=out, bars=progress_bar,
    )  # fmt: skip
    against = {kind: against_best_part(figures, kind) for kind in KINDS}
    for kind, ratio in against.items():
        print(f"{kind:8} hybrid against its best part {ratio:.3f}", flush=True)
    if args.json_file:
        exact = {"worst_vs_best_part": min(against.values()), **{f"vs_best_part/{k}": r for k, r in against.items()}}
        more = {name: figure for name, figure in figures.items() if name.startswith("speedup/")}
        figures = {name: Interval(value, value, value) for name, value in exact.items()} | more
        write(args.json_file, len(prompts), figures, repeats=args.repeats)


def against_best_part(figures: dict[str, Interval], kind: str) -> float:
    """Tokens/s of the hybrid over those of its best part, on prompts of one kind."""
    best = max(figures[f"speedup/{part['method']}/{kind}"].value for part in PARTS)
    return figures[f"speedup/{HYBRID}/{kind}"].value / best


if __name__ == "__main__":
    main()
