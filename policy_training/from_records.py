"""The router's records as a dataset, and the matrix that they are too thin for: each request was seen under one arm."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from policy_training.costs import Costs
from policy_training.dataset import Dataset, DatasetError, Measurement
from policy_training.matrix import Matrix
from policy_training.ope import Logged
from router.records import read
from router.types import Context, Record, Vector

KIND = "traffic"
_FEWEST = 20
"""Requests that an arm must have been seen with before anything is said of it."""


def from_records(folder: Path) -> Dataset:
    """Finished answers with a context and a propensity, in order of time; what is left out is counted.

    Raises `DatasetError` when the folder has no records, or a damaged one.
    """
    if not any(folder.glob("records-*.jsonl")):
        raise DatasetError(f"{folder} holds no records-*.jsonl (is `router.records.dir` set?)")
    dropped: Counter[str] = Counter()
    kept: list[tuple[float, Measurement, Context]] = []
    try:
        for record in read(folder):
            if (reason := _unusable(record)) or record.context is None:
                dropped[f"{reason or 'no_context'}:{record.decision.arm}"] += 1
            else:
                kept.append((record.time, _measurement(record), record.context))
    except ValueError as error:
        raise DatasetError(f"{folder}: {error}") from error
    if not kept:
        raise DatasetError(f"{folder} holds no record to learn from (dropped: {dict(dropped)})")
    kept.sort(key=lambda row: row[0])
    contexts: dict[str, dict[str, Vector]] = {m.prompt_id: {c.featurizer: c.vector} for _, m, c in kept}
    return Dataset(tuple(m for _, m, _ in kept), contexts, dict(dropped))


def _unusable(record: Record) -> str | None:
    outcome, decision = record.outcome, record.decision
    if decision.reason != "policy":
        return decision.reason
    if outcome.status != "ok":
        return outcome.status
    if outcome.ttft_s is None or outcome.tpot_s is None or not outcome.output_tokens:
        return "too_short"
    if not 0 < decision.propensity <= 1:
        return "no_propensity"
    if record.context is not None and not np.isfinite(record.context.vector).all():
        return "context_not_finite"
    return None


def _measurement(record: Record) -> Measurement:
    sampling = record.sampling or {}
    return Measurement(
        prompt_id=f"{record.request_id}/{record.attempt}",
        kind=KIND,
        label=record.decision.arm,
        arm=record.decision.arm,
        temperature=float(sampling.get("temperature", 1.0)),
        max_tokens=int(sampling.get("max_tokens") or sampling.get("max_completion_tokens") or 0),
        outcome=record.outcome,
        source="record",
        in_flight=sum(record.load.values()) + 1,
        propensity=record.decision.propensity,
    )


def imputed(data: Dataset, arms: Sequence[str], featurizer: str, costs: Costs) -> Matrix:
    """A full matrix of records: tau as it was seen where it was, and elsewhere as a ridge regression of it expects.

    Arms may be unseen for most requests and never for all: raises `DatasetError` for one that was hardly taken.
    """
    from sklearn.linear_model import Ridge

    rows = [m for m in data.measurements if featurizer in data.contexts.get(m.prompt_id, {})]
    if not rows:
        raise DatasetError(f"no record has a context of {featurizer!r}")
    x = np.stack([data.contexts[m.prompt_id][featurizer] for m in rows]).astype(np.float64)
    z = (x - x.mean(0)) / (x.std(0) + 1e-6)
    taken = np.asarray([arms.index(m.arm) if m.arm in arms else -1 for m in rows])
    weight = np.asarray([1.0 / (m.propensity or 1.0) for m in rows])
    seen = np.asarray([np.log(max(m.outcome.acceptance_length or 1.0, 1.0)) for m in rows])
    log_tau = np.zeros((len(rows), len(arms)))
    for arm, name in enumerate(arms):
        mine = taken == arm
        if mine.sum() < _FEWEST:
            raise DatasetError(f"arm {name!r} has {mine.sum()} records: at least {_FEWEST} are needed (explore more)")
        model = Ridge(alpha=z.shape[1]).fit(z[mine], seen[mine], sample_weight=weight[mine] / weight[mine].mean())
        log_tau[:, arm] = np.where(mine, seen, np.maximum(model.predict(z), 0.0))
    tau = np.exp(log_tau)
    outcomes = [m.outcome for m in rows]
    prompt_tokens = np.asarray([o.prompt_tokens or 0 for o in outcomes], np.float64)
    tokens = np.asarray([o.output_tokens or 0 for o in outcomes], np.float64)
    temperatures = np.asarray([m.temperature for m in rows])
    return Matrix(
        prompt_ids=tuple(m.prompt_id for m in rows),
        kinds=tuple(m.kind for m in rows),
        arms=tuple(arms),
        time_s=costs.of(arms).time_s(tau, prompt_tokens, tokens, temperatures > 0),
        acceptance_length=tau,
        acceptance_rate=np.full_like(tau, np.nan),
        prompt_tokens=prompt_tokens,
        output_tokens=tokens,
        temperatures=temperatures,
        dropped=dict(data.dropped),
        featurizer=featurizer,
        contexts=x.astype(np.float32),
    )


def logged(data: Dataset, arms: Sequence[str]) -> Logged:
    """Decisions with the reward -TPOT in seconds, which compares answers of any length: higher is better."""
    return Logged(
        np.asarray([arms.index(m.arm) for m in data.measurements], np.int64),
        np.asarray([-(m.outcome.tpot_s or 0.0) for m in data.measurements], np.float64),
        np.asarray([m.propensity or 0.0 for m in data.measurements], np.float64),
    )


def by_time(data: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """The earlier share of the records, and the later rest: traffic changes, and a policy serves the future."""
    at = round(share * len(data.measurements))
    return tuple(
        Dataset(part, data.contexts, data.dropped) for part in (data.measurements[:at], data.measurements[at:])
    )  # type: ignore[return-value]


def contexts_of(data: Dataset, featurizer: str) -> npt.NDArray[np.float32]:
    """Contexts [n, d] in the order of the measurements."""
    return np.stack([data.contexts[m.prompt_id][featurizer] for m in data.measurements])
