"""The matrix of learners and evaluations: times of all arms on the same requests."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from draftpick.policy_training.data.dataset import Dataset, DatasetError, Measurement
from draftpick.policy_training.data.step_costs import Costs

Floats = npt.NDArray[np.float64]
_CELLS = ("time_s", "acceptance_length", "acceptance_rate")
_ROWS = (*_CELLS, "prompt_tokens", "output_tokens", "temperatures")


@dataclass(frozen=True, slots=True)
class Matrix:
    """Times of all arms on the same requests.

    `time_s` [n, arms]: seconds for the same number of output tokens under every arm; `contexts` [n, d] float32, or
    None; `acceptance_length` [n, arms], 1 where none is reported; `acceptance_rate` [n, arms], NaN where nothing was
    drafted; `output_tokens`, `prompt_tokens` [n]. `dropped`: dropped requests, counted by reason. `sources`: of the
    prompts, empty where unknown; no sources at all: all are unknown.
    """

    prompt_ids: tuple[str, ...]
    kinds: tuple[str, ...]
    arms: tuple[str, ...]
    time_s: Floats
    acceptance_length: Floats
    acceptance_rate: Floats
    prompt_tokens: Floats
    output_tokens: Floats
    temperatures: Floats
    dropped: dict[str, int]
    featurizer: str | None = None
    contexts: npt.NDArray[np.float32] | None = None
    sources: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def __add__(self, other: "Matrix") -> "Matrix":
        """Concatenate the requests of matrices with equal arms and featurizer."""
        assert (self.arms, self.featurizer) == (other.arms, other.featurizer)
        assert self.contexts is not None
        assert other.contexts is not None
        arrays = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in (*_ROWS, "contexts")}
        return replace(
            self, prompt_ids=self.prompt_ids + other.prompt_ids, kinds=self.kinds + other.kinds,
            sources=(*(self.sources or ("",) * len(self)), *(other.sources or ("",) * len(other))),
            dropped=dict(Counter(self.dropped) + Counter(other.dropped)), **arrays,
        )  # fmt: skip

    def select_arms(self, arms: Sequence[str]) -> "Matrix":
        """Return the same requests under these arms only."""
        columns = [self.arms.index(arm) for arm in arms]
        cells = {name: getattr(self, name)[:, columns] for name in _CELLS}
        return replace(self, arms=tuple(arms), **cells)

    def select_rows(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> "Matrix":
        """Return these requests only, by index or mask."""
        chosen = np.arange(len(self))[rows]
        arrays = {name: getattr(self, name)[chosen] for name in _ROWS}
        ids, kinds = (tuple(values[i] for i in chosen) for values in (self.prompt_ids, self.kinds))
        sources = tuple(self.sources[i] for i in chosen) if self.sources else ()
        contexts = None if self.contexts is None else self.contexts[chosen]
        return replace(self, prompt_ids=ids, kinds=kinds, sources=sources, contexts=contexts, **arrays)


def matrix(
    data: Dataset, labels: Sequence[str], *, featurizer: str | None = None, costs: Costs | None = None
) -> Matrix:
    """The requests measured under all `labels`; with contexts of `featurizer`, if given.

    Several measurements of a request under one label are averaged. Replayed measurements have no times: `costs`
    provides them. Raises `DatasetError` if none is left.
    """
    measured: dict[str, dict[str, list[Measurement]]] = {}
    for m in data.measurements:
        measured.setdefault(m.prompt_id, {}).setdefault(m.label, []).append(m)
    by_prompt = {i: {label: _mean(several) for label, several in cells.items()} for i, cells in measured.items()}
    dropped: Counter[str] = Counter(data.dropped)
    rows, contexts = [], []
    for prompt_id, cells in by_prompt.items():
        context = data.contexts.get(prompt_id, {}).get(featurizer) if featurizer else np.zeros(0, np.float32)
        reason = _unusable(cells, labels, timed=costs is None)
        if not reason and (context is None or not np.isfinite(context).all()):
            reason = "no_context" if context is None else "context_not_finite"
        if reason or context is None:
            dropped[str(reason)] += 1
            continue
        rows.append([cells[label] for label in labels])
        contexts.append(context)
    if not rows:
        raise DatasetError(f"no request was measured under all of {list(labels)} (dropped: {dict(dropped)})")
    return _matrix(rows, labels, dict(dropped), featurizer, np.stack(contexts) if featurizer else None, costs)


def each_answer(data: Dataset) -> list[Dataset]:
    """The first answers to all requests, the second ones, and so on, as long as every request has one."""
    occurrences: Counter[tuple[str, str]] = Counter()
    rounds: dict[int, list[Measurement]] = {}
    for m in data.measurements:
        rounds.setdefault(occurrences[m.prompt_id, m.label], []).append(m)
        occurrences[m.prompt_id, m.label] += 1
    return [replace(data, measurements=tuple(rounds[i])) for i in range(min(occurrences.values()))]


def _matrix(
    rows: list[list[Measurement]],
    labels: Sequence[str],
    dropped: dict[str, int],
    featurizer: str | None,
    contexts: npt.NDArray[np.float32] | None,
    costs: Costs | None,
) -> Matrix:
    outcomes = [[m.outcome for m in row] for row in rows]
    first = [row[0] for row in rows]
    # Lengths may differ by arm if sampled.
    tokens = np.median([[o.output_tokens or 0 for o in row] for row in outcomes], axis=1)
    prompt_tokens = np.asarray([row[0].prompt_tokens or 0 for row in outcomes], np.float64)
    temperatures = np.asarray([m.temperature for m in first], np.float64)
    tau = np.asarray([[o.acceptance_length or 1.0 for o in row] for row in outcomes], np.float64)
    if costs is None:
        ttft = np.asarray([[o.ttft_s for o in row] for row in outcomes], np.float64)
        tpot = np.asarray([[o.tpot_s for o in row] for row in outcomes], np.float64)
        time_s = ttft + tpot * (tokens[:, None] - 1)
    else:
        time_s = costs.select(labels).time_s(tau, prompt_tokens, tokens, temperatures > 0)
    return Matrix(
        prompt_ids=tuple(m.prompt_id for m in first),
        kinds=tuple(m.task for m in first),
        arms=tuple(labels),
        time_s=time_s,
        acceptance_length=tau,
        acceptance_rate=np.asarray([[o.acceptance_rate for o in row] for row in outcomes], np.float64),
        prompt_tokens=prompt_tokens,
        output_tokens=tokens,
        temperatures=temperatures,
        dropped=dropped,
        featurizer=featurizer,
        contexts=contexts,
        sources=tuple(m.prompt_source for m in first),
    )


def _mean(several: Sequence[Measurement]) -> Measurement:
    """The mean of several measurements of a request under one arm; failed ones count only without others."""
    usable = [m for m in several if m.outcome.status == "ok"] or several
    if len(usable) == 1:
        return usable[0]
    outcomes = [m.outcome for m in usable]

    # Times are proportional to steps per token, 1 / tau.
    steps = [1 / (o.acceptance_length or 1.0) for o in outcomes]
    tokens = _mean_of([o.output_tokens for o in outcomes])
    outcome = replace(
        outcomes[0],
        ttft_s=_mean_of([o.ttft_s for o in outcomes]),
        tpot_s=_mean_of([o.tpot_s for o in outcomes]),
        acceptance_rate=_mean_of([o.acceptance_rate for o in outcomes]),
        acceptance_length=1 / float(np.mean(steps)),
        output_tokens=None if tokens is None else round(tokens),
    )
    return replace(usable[0], outcome=outcome)


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _unusable(cells: dict[str, Measurement], labels: Sequence[str], *, timed: bool) -> str | None:
    """The reason to drop a request; None if every label has a usable measurement."""
    for label in labels:
        if label not in cells:
            return f"missing:{label}"
        outcome = cells[label].outcome
        if outcome.status != "ok":
            return f"{outcome.status}:{label}"
        if timed and (outcome.tpot_s is None or outcome.ttft_s is None):
            return f"{'untimed' if cells[label].source == 'replay' else 'too_short'}:{label}"
        figures = (outcome.tpot_s, outcome.ttft_s, outcome.acceptance_length)
        if not all(figure is None or np.isfinite(figure) for figure in figures):
            return f"not_finite:{label}"
        if not timed and (outcome.output_tokens or 0) < 2:
            return f"too_short:{label}"
    return None
