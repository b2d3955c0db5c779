"""Sixteen engines for benches of fleets: what each accepts of measured requests, and what its steps take.

`results/acceptance_rows.json` holds 384 requests of six kinds, half of them sampled, and what drafters accept of each
at several draft lengths, as `draftpick label --config tests/bench/candidates.yaml -n 384 --max-tokens 128` replayed it;
`python -m tests.bench.measured_engines FOLDER` writes it, and `acceptance.json`: means, beside those of the worst and
the best kind. Steps on CPUs are those of `results/profiles/` (`draftpick profile`); of draft lengths that were not
measured, and of a GPU, they are derived, as said below.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from draftpick.deploy.workflows.results import write
from draftpick.engines.profile.profile import Profile
from draftpick.policy_training.data.dataset import load
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.simulator.requests import Requests

RESULTS = Path(__file__).parent / "results"
LENGTHS: Mapping[str, int] = {"plain": 0, "suffix": 8, "hybrid": 8, "general": 4, "math": 4, "code": 4, "chat": 4}
"""Draft lengths of the embedded fleet, whose profiles are measured."""
SHORTER: Mapping[str, tuple[int, ...]] = {
    "general": (2, 1), "math": (2,), "code": (2,), "chat": (2,), "suffix": (4, 2), "hybrid": (4, 2),
}  # fmt: skip
"""The same drafters with shorter drafts: other engines."""
_REPLAYED = (1, 2, 3, 4, 6, 8)
_PLAIN = "plain"
_TWINS: Mapping[str, str] = {"hybrid": "suffix", "math": "general", "code": "general", "chat": "general"}
"""Engines whose steps cost the same (`step_cost` in drafters.json): heads of one shape, drafters without a model."""


def column(drafter: str, k: int) -> str:
    """Name of an engine, and of the column of its acceptance lengths."""
    return drafter if k == LENGTHS[drafter] else f"{drafter}@{k}"


def names() -> list[str]:
    """All sixteen."""
    more = [column(drafter, k) for drafter, lengths in SHORTER.items() for k in lengths]
    return [*LENGTHS, *more]


def requests() -> Requests:
    """The measured requests, with all columns."""
    held = json.loads((RESULTS / "acceptance_rows.json").read_text())
    kinds = tuple(sorted(set(held["kind"])))
    tau = {_PLAIN: np.ones(len(held["kind"]))}
    for drafter, most in LENGTHS.items():
        for k in _REPLAYED:
            if k <= most and drafter != _PLAIN:
                tau[column(drafter, k)] = np.asarray(held["tau"][f"{drafter}@{k}"])
    return Requests(
        kinds=kinds,
        columns=tuple(tau),
        kind=np.asarray([kinds.index(kind) for kind in held["kind"]]),
        prompt_tokens=np.asarray(held["prompt_tokens"], float),
        output_tokens=np.asarray(held["output_tokens"], float),
        sampled=np.asarray(held["sampled"], bool),
        tau=np.maximum(np.stack(list(tau.values()), 1), 1.0),
        arrival_s=np.zeros(len(held["kind"])),
    )


def measured() -> dict[str, Profile]:
    """Profiles of the embedded fleet on CPUs, as they were measured; of engines that were not, their twins' ones."""
    files = {name: RESULTS / "profiles" / f"{name}.json" for name in LENGTHS}
    found = {name: file if file.is_file() else files[_TWINS.get(name, name)] for name, file in files.items()}
    return {name: Profile.from_json(file.read_bytes()) for name, file in found.items()}


def on_cpus() -> dict[str, Profile]:
    """Profiles of all engines and draft lengths; what was not measured is derived by `shorter`."""
    known = measured()
    found = dict(known)
    for drafter, most in LENGTHS.items():
        for k in _REPLAYED:
            if k < most:
                found[column(drafter, k)] = shorter(known[drafter], known[_PLAIN], most, k)
    return found


def shorter(long: Profile, baseline: Profile, most: int, k: int) -> Profile:
    """The profile of a drafter of which `most` tokens are measured, with k.

    A line between an engine that drafts nothing and one that drafts `most`, at each batch size: both verification and
    drafting are of so many tokens.
    """
    steps = tuple(
        tuple(
            tuple(
                baseline.step(batch, context, half) + k / most * max(step - baseline.step(batch, context, half), 0.0)
                for step, context in zip(row, long.contexts, strict=True)
            )
            for batch, row in zip(long.batches, table, strict=True)
        )
        for half, table in enumerate(long.step_s)
    )
    return replace(long, build=f"{long.build}@{k}", step_s=steps)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card and a target on it, in seconds: what a step reads, computes and launches.

    Defaults are of an 8-billion target in bfloat16 on an H100, by its data sheet at two thirds of the bandwidth and
    half of the arithmetic that it promises: 16 GB at 3.35 TB/s, 16 GFLOP a token at 990 TFLOP/s, 128 KiB of cache for a
    token of context. A head drafts a token in a twentieth of a step without arithmetic; text is copied for free.
    """

    weights_s: float = 7.2e-3
    token_s: float = 3.2e-5
    context_token_s: float = 6e-8
    head_s: float = 3.6e-4
    prefill_s: float = 0.012
    max_running: int = 256

    def profile(self, drafter: str, k: int) -> Profile:
        """Of a drafter: reading and arithmetic overlap, the longer one counts, a little rounded where they meet."""
        batches, contexts = (1, 2, 4, 8, 16, 32, 64, 128, 256), (0, 1000, 4000)
        drafting_s = 0.0 if drafter in ("plain", "suffix", "hybrid") else k * self.head_s
        table = tuple(
            tuple(self._verify_s(n * (k + 1), n * context) + drafting_s for context in contexts) for n in batches
        )
        return Profile(
            build=column(drafter, k), machine="derived", batches=batches, contexts=contexts, step_s=(table, table),
            prefill_s=self.prefill_s, prefill_s_per_token=self.token_s, max_running=self.max_running,
        )  # fmt: skip

    def _verify_s(self, tokens: int, context: float) -> float:
        reading_s, computing_s = self.weights_s + context * self.context_token_s, tokens * self.token_s
        return float((reading_s**4 + computing_s**4) ** 0.25)


def on_gpu(card: Gpu | None = None) -> dict[str, Profile]:
    """Profiles of all engines and draft lengths on a GPU: derived, not measured."""
    card = card or Gpu()
    found = {}
    for drafter, most in LENGTHS.items():
        for k in (0,) if drafter == _PLAIN else _REPLAYED:
            if k <= most:
                found[column(drafter, k)] = card.profile(drafter, k)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="dataset of `draftpick label --config tests/bench/candidates.yaml`")
    args = parser.parse_args()
    cells: dict[str, dict[str, object]] = {}
    tau: dict[str, dict[str, float]] = {}
    for m in load(args.dataset).measurements:
        row = {"kind": m.task, "prompt_tokens": m.outcome.prompt_tokens, "output_tokens": m.outcome.output_tokens}
        cells[m.prompt_id] = {**row, "sampled": int(m.temperature > 0)}
        of_request = tau.setdefault(m.prompt_id, {})
        of_request |= {f"{m.arm}@{k}": round(length, 3) for k, length in m.tau_by_length.items()}
    rows: dict[str, object] = {name: [cell[name] for cell in cells.values()] for name in next(iter(cells.values()))}
    columns = next(iter(tau.values()))
    rows["tau"] = {name: [one[name] for one in tau.values()] for name in columns if name.split("@")[0] in LENGTHS}
    (RESULTS / "acceptance_rows.json").write_text(_lines(rows))
    kinds = np.asarray(rows["kind"])
    figures = {}
    for name in columns:
        steps = np.asarray([1 / max(one[name], 1.0) for one in tau.values()])
        means = [float(1 / steps[kinds == kind].mean()) for kind in sorted(set(kinds))]
        figures[f"acceptance_length/{name}"] = Interval(float(1 / steps.mean()), min(means), max(means))
    write(RESULTS / "acceptance.json", len(cells), figures)


def _lines(rows: Mapping[str, object]) -> str:
    """JSON with a line for each column."""
    parts = [
        f"{json.dumps(name)}: {_lines(value) if isinstance(value, dict) else json.dumps(value, separators=(',', ':'))}"
        for name, value in rows.items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
