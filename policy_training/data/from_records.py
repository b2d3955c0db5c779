"""The router's records as a dataset, and as an imputed matrix, since most requests were served by one arm only."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import numpy.typing as npt

from draftpick.engines.arms import NONE, drafter_of, engine_of, pool_arm
from draftpick.engines.http.json_values import MAX_TAU, to_count, to_figure
from draftpick.policy_training.data.dataset import Dataset, DatasetError, Measurement
from draftpick.policy_training.data.key_weights import key_weights
from draftpick.policy_training.data.logged_feedback import LoggedFeedback
from draftpick.policy_training.data.matrix import Matrix
from draftpick.policy_training.data.ridge import predict, ridge
from draftpick.policy_training.data.step_costs import Costs
from draftpick.router.online.events import bounded_time
from draftpick.router.openai_request import LIMITS
from draftpick.router.policies.base import Policy
from draftpick.router.records import read
from draftpick.router.types import Context, Decision, Outcome, Record, Vector, acceptance_by_arm

KIND = "traffic"
_MIN_ANSWERS = 20
"""Minimum requests per arm for a prediction without a prior policy."""
_LEAST = 1e-9
_MAX_WEIGHT = 10.0
_PRIOR = 10.0


def from_records(folder: Path) -> Dataset:
    """Load the finished answers of a folder's records. Raises `DatasetError` for a folder without any, or a damaged
    one."""
    if not any(folder.glob("records-*.jsonl")):
        raise DatasetError(f"{folder} contains no records-*.jsonl: check `router.records.dir`")
    try:
        return dataset_of(read(folder))
    except ValueError as error:
        raise DatasetError(f"{folder}: {error}") from error


def dataset_of(records: Iterable[Record], since: Mapping[str, float] | None = None) -> Dataset:
    """Finished answers with a context and a propensity, in order of time; dropped records are counted.

    `since`: time by arm (seconds since the epoch) before which its records are outdated. Shadows have no propensity,
    since no policy drew them, nor have the other arms of a pool. Raises `DatasetError` if none is left.
    """
    dropped: Counter[str] = Counter()
    kept: list[tuple[float, Measurement, Context]] = []
    records = separate_requests(records)
    excess = _excess_of_keys(records)
    for record in records:
        reason, context = _unusable(record), record.context
        if reason is None and record.request_id in excess:
            reason = "key_share"
        if reason is not None or context is None:
            dropped[f"{reason or 'no_context'}:{record.decision.arm}"] += 1
            continue
        for m in (_measurement(record), *_scored(record)):
            if since and record.time < since.get(m.arm, 0.0):
                dropped[f"before_change:{m.arm}"] += 1
            else:
                kept.append((record.time, m, context))
    sizes = Counter((c.featurizer, len(c.vector)) for _, _, c in kept)
    usual = {featurizer: size for (featurizer, size), _ in reversed(sizes.most_common())}
    dropped.update(f"context_size:{m.arm}" for _, m, c in kept if len(c.vector) != usual[c.featurizer])
    kept = [row for row in kept if len(row[2].vector) == usual[row[2].featurizer]]
    if not kept:
        raise DatasetError(f"no usable record (dropped: {dict(dropped)})")
    kept.sort(key=lambda row: row[0])
    contexts: dict[str, dict[str, Vector]] = {m.prompt_id: {c.featurizer: c.vector} for _, m, c in kept}
    return Dataset(tuple(m for _, m, _ in kept), contexts, dict(dropped))


def separate_requests(records: Iterable[Record]) -> list[Record]:
    """Records whose ids name one request each. Earlier versions recorded the client's own ids, which may repeat.

    Of an id that several requests have, each gets one of its own, and shadows are dropped: whose they are is unknown.
    """
    records = list(records)
    drawn = Counter((r.request_id, r.attempt) for r in records if r.decision.reason != "shadow")
    numbers: Counter[tuple[str, int]] = Counter()
    found = []
    for record in records:
        id = record.request_id, record.attempt
        if drawn[id] > 1:
            if record.decision.reason == "shadow":
                continue
            numbers[id] += 1
            record = replace(record, request_id=f"{record.request_id}#{numbers[id]}")
        found.append(record)
    return found


def _excess_of_keys(records: Sequence[Record]) -> set[str]:
    """Ids of requests to leave out, so that no API key has too much weight: a random sample of its requests stays."""
    drawn = sorted((r for r in records if r.decision.reason == "policy" and r.attempt == 1), key=lambda r: r.time)
    weights = key_weights([r.key for r in drawn])
    return {r.request_id for r, weight in zip(drawn, weights, strict=True) if _draw(r.request_id) >= weight}


def _draw(id: str) -> float:
    """A number in [0, 1) that an id always gets."""
    return crc32(id.encode()) / 2**32


def _unusable(record: Record) -> str | None:
    outcome, decision = record.outcome, record.decision
    if decision.reason not in ("policy", "shadow"):
        return decision.reason
    if outcome.status != "ok":
        return outcome.status
    if (record.sampling or {}).get("n", 1.0) > 1:
        return "several_answers"
    if outcome.prediction is not None:
        return "predicted_answer"
    if outcome.ttft_s is None or outcome.tpot_s is None or not outcome.output_tokens:
        return "too_short"
    load = decision.load
    named = decision.arm in decision.probabilities and (
        load is None or len(load.slowdown) == len(decision.probabilities)
    )
    if not (named and _is_possible(outcome)):
        return "impossible"
    if not 0 < decision.propensity <= 1:
        return "no_propensity"
    if record.context is not None and not np.isfinite(record.context.vector).all():
        return "context_not_finite"
    return None


def _is_possible(outcome: Outcome) -> bool:
    """True if an answer can have these figures: those of earlier versions, and damaged ones, may be any."""
    tau, prompt = outcome.acceptance_length, outcome.prompt_tokens
    return (
        None not in (to_figure(outcome.tpot_s, _LEAST), to_figure(outcome.ttft_s), to_count(outcome.output_tokens))
        and (tau is None or to_figure(tau, _LEAST, MAX_TAU) is not None)
        and (prompt is None or to_count(prompt) is not None)
    )


def _scored(record: Record) -> Iterator[Measurement]:
    """The other arms of a pool that an answer shows, as measurements without a propensity, like those of shadows.

    A drafter that was scored on the answer would have taken (its step / its tau) over (the served arm's step / its
    tau) of the measured time; steps by the prediction of the decision.
    """
    decision, outcome, served = record.decision, record.outcome, _measurement(record)
    if outcome.drafters is None or outcome.tpot_s is None:
        return
    step_s = _predicted_steps(decision)
    measured_s = outcome.tpot_s * (served.outcome.acceptance_length or 1.0) / step_s.get(served.arm, 1.0)
    taus = {arm: tau for arm, tau, tokens in acceptance_by_arm(decision.arm, outcome) if tau and tokens}
    for arm, tau in {pool_arm(engine_of(decision.arm), NONE): 1.0, **taus}.items():
        if arm != served.arm:
            tpot_s = measured_s * step_s.get(arm, 1.0) / tau
            scored = replace(served.outcome, tpot_s=tpot_s, acceptance_length=tau, acceptance_rate=None)
            yield replace(served, label=arm, arm=arm, outcome=scored, propensity=None)


def _predicted_steps(decision: Decision) -> dict[str, float]:
    """Predicted seconds of a step by arm; none if the decision has no predictions."""
    if decision.predicted_tau is None or decision.predicted_tpot_s is None:
        return {}
    columns = zip(decision.probabilities, decision.predicted_tpot_s, decision.predicted_tau, strict=True)
    return {arm: tpot_s * tau for arm, tpot_s, tau in columns}


def _own_outcome(record: Record) -> Outcome:
    """The outcome, of a pool with the acceptance of the arm's own drafter instead of that of all that drafted."""
    outcome = record.outcome
    if outcome.drafters is None:
        return outcome
    taus = {arm: tau for arm, tau, tokens in acceptance_by_arm(record.decision.arm, outcome) if tokens}
    own = 1.0 if drafter_of(record.decision.arm) == NONE else taus.get(record.decision.arm)
    return replace(outcome, drafters=None, acceptance_length=own or outcome.acceptance_length)


def _measurement(record: Record) -> Measurement:
    sampling = record.sampling or {}
    return Measurement(
        prompt_id=f"{record.request_id}/{record.attempt}",
        task=KIND,
        label=record.decision.arm,
        arm=record.decision.arm,
        temperature=float(sampling.get("temperature", 1.0)),
        max_tokens=int(next((sampling[name] for name in LIMITS if name in sampling), 0)),
        outcome=_own_outcome(record),
        source="record",
        in_flight=sum(record.in_flight.values()) + 1,
        propensity=record.decision.propensity if record.decision.reason == "policy" else None,
        time=record.time,
        slowdown=record.decision.slowdown,
    )


def impute_missing_arms(
    data: Dataset, arms: Sequence[str], featurizer: str, costs: Costs, prior: Policy | None = None
) -> Matrix:
    """A full matrix from records: observed tau where available, elsewhere the prediction of a ridge regression.

    With `prior`, a policy that predicts tau, the regression fits its residuals, and an arm may be unobserved; without
    one, an arm with too few records raises `DatasetError`.
    """
    requests = _by_request(data, featurizer)
    if not requests:
        raise DatasetError(f"no record has a context of {featurizer!r}")
    x = np.stack([data.contexts[i][featurizer] for i in requests]).astype(np.float64)
    z = (x - x.mean(0)) / (x.std(0) + 1e-6)
    before = _log_tau_of(prior, arms, x, featurizer)
    log_tau = before.copy()
    for arm, name in enumerate(arms):
        observed = [(i, m) for i, cells in enumerate(requests.values()) for m in cells if m.arm == name]
        if len(observed) < _MIN_ANSWERS and prior is None:
            raise DatasetError(
                f"arm {name!r} has {len(observed)} records: at least {_MIN_ANSWERS} are needed (increase exploration)"
            )
        if observed:
            rows = np.asarray([i for i, _ in observed])
            values = np.asarray([np.log(max(m.outcome.acceptance_length or 1.0, 1.0)) for _, m in observed])
            weight = np.asarray([min(1.0 / (m.propensity or 1e-9), _MAX_WEIGHT) for _, m in observed])
            log_tau[:, arm] += _residual_correction(z, rows, values - before[rows, arm], weight)
            log_tau[rows, arm] = values
    tau = np.exp(np.maximum(log_tau, 0.0))
    first = [cells[0] for cells in requests.values()]
    prompt_tokens = np.asarray([m.outcome.prompt_tokens or 0 for m in first], np.float64)
    tokens = np.asarray([m.outcome.output_tokens or 0 for m in first], np.float64)
    temperatures = np.asarray([m.temperature for m in first])
    return Matrix(
        prompt_ids=tuple(requests),
        kinds=tuple(m.task for m in first),
        arms=tuple(arms),
        time_s=costs.select(arms).time_s(tau, prompt_tokens, tokens, temperatures > 0),
        acceptance_length=tau,
        acceptance_rate=np.full_like(tau, np.nan),
        prompt_tokens=prompt_tokens,
        output_tokens=tokens,
        temperatures=temperatures,
        dropped=dict(data.dropped),
        featurizer=featurizer,
        contexts=x.astype(np.float32),
    )


def _by_request(data: Dataset, featurizer: str) -> dict[str, list[Measurement]]:
    """Measurements by request with a context: the client's own, and those of its shadows."""
    found: dict[str, list[Measurement]] = {}
    for m in data.measurements:
        if featurizer in data.contexts.get(m.prompt_id, {}):
            found.setdefault(m.prompt_id, []).append(m)
    return found


def _log_tau_of(
    prior: Policy | None, arms: Sequence[str], x: npt.NDArray[np.float64], featurizer: str
) -> npt.NDArray[np.float64]:
    """Log tau [n, arms] predicted by a policy; 0 where unknown, or without a policy."""
    found = np.zeros((len(x), len(arms)))
    if prior is None or prior.featurizer != featurizer:
        return found
    predicted = prior.acceptance_lengths(x.astype(np.float32))
    for column, arm in enumerate(arms):
        if predicted is not None and arm in prior.arms:
            found[:, column] = np.log(predicted[:, prior.arms.index(arm)])
    return found


def _residual_correction(
    z: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int64],
    residual: npt.NDArray[np.float64],
    weight: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Correction for all rows [n]: the mean of few residuals, shrunk to 0; a ridge regression of more."""
    drawn_to_0, one_arm = residual.sum(keepdims=True) / (len(rows) + _PRIOR), np.zeros(len(rows), np.int64)
    weight = weight / weight.mean()
    return predict(z, ridge(z[rows], one_arm, residual, drawn_to_0, fewest=_MIN_ANSWERS, weight=weight))[:, 0]


def random_arm_rows(data: Dataset, featurizer: str | None = None) -> Dataset:
    """The records drawn by a policy, without shadows; with a featurizer: those with its context."""
    rows = [m for m in data.measurements if m.propensity is not None]
    if featurizer is not None:
        rows = [m for m in rows if featurizer in data.contexts.get(m.prompt_id, {})]
    return Dataset(tuple(rows), data.contexts, data.dropped)


def paired_rows(data: Dataset, rows: Dataset, arms: Sequence[str]) -> npt.NDArray[np.float64]:
    """Seconds per token [n, arms] of the requests of `rows`; a row is NaN unless `data` has all of its arms."""
    cells: dict[str, dict[str, float]] = {}
    for m in data.measurements:
        cells.setdefault(m.prompt_id, {})[m.arm] = m.outcome.tpot_s or np.nan
    found = np.full((len(rows.measurements), len(arms)), np.nan)
    for i, m in enumerate(rows.measurements):
        if all(arm in cells[m.prompt_id] for arm in arms):
            found[i] = [cells[m.prompt_id][arm] for arm in arms]
    return found


def logged_feedback(data: Dataset, arms: Sequence[str]) -> LoggedFeedback:
    """Decisions with the reward -TPOT in seconds, independent of the answer's length: higher is better."""
    rows = random_arm_rows(data).measurements
    return LoggedFeedback(
        np.asarray([arms.index(m.arm) for m in rows], np.int64),
        np.asarray([-(m.outcome.tpot_s or 0.0) for m in rows], np.float64),
        np.asarray([m.propensity or 0.0 for m in rows], np.float64),
    )


def by_time(data: Dataset, share: float, since: float = 0.0) -> tuple[Dataset, Dataset]:
    """Split into the earlier and the later records: traffic changes, and a policy serves the future.

    The second part starts after `share` of the records later than `since` (seconds since the epoch).
    """
    since = bounded_time(since)
    before = sum(m.time <= since for m in data.measurements)
    at = before + round(share * (len(data.measurements) - before))
    earlier, later = data.measurements[:at], data.measurements[at:]
    return Dataset(earlier, data.contexts, data.dropped), Dataset(later, data.contexts, data.dropped)


def contexts_of(data: Dataset, featurizer: str) -> npt.NDArray[np.float32]:
    """Contexts [n, d] in the order of the measurements."""
    return np.stack([data.contexts[m.prompt_id][featurizer] for m in data.measurements])
