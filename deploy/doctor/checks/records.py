"""Checks of the latest records."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from draftpick.deploy.doctor.context import DoctorContext
from draftpick.deploy.doctor.findings import Finding, check, note, problem, warning
from draftpick.engines.arms import engine_of
from draftpick.router.online.safe_mode import PREFIX
from draftpick.router.types import Record, ignores_forecast

_MIN_RECORDS = 50
_LOST = 1.02
"""Acceptance length below which a drafter counts as lost."""
_MIN_RATE = 0.1
_FAILS = 0.02
_OFF = 1.5
_SAMPLED = 0.9
_TINY = 16


def _finished(context: DoctorContext) -> dict[str, list[Record]]:
    """Answers by arm, of arms with enough of them."""
    found: dict[str, list[Record]] = {}
    for record in context.attempts:
        if record.outcome.status == "ok" and record.outcome.tpot_s:
            found.setdefault(record.decision.arm, []).append(record)
    return {arm: some for arm, some in found.items() if len(some) >= _MIN_RECORDS}


@check("records", "records are readable")
def readable(context: DoctorContext) -> Iterator[Finding]:
    """By reading them as retraining does: damaged lines are skipped."""
    if isinstance(context.records, str):
        yield problem(
            "router.records.dir",
            context.records,
            "move that file out of the folder",
            "training fails on a folder that cannot be read",
        )
    for name, lines in context.damaged.items():
        yield warning(
            "router.records.dir",
            f"{name}: {lines} damaged {'line is' if lines == 1 else 'lines are'} skipped",
            "`draftpick records repair FOLDER` moves them out of the segment",
            "what they recorded is lost for retraining",
        )


@check("records", "drafts are accepted")
def lost_drafts(context: DoctorContext) -> Iterator[Finding]:
    """By the logged acceptance of each answer."""
    drafts = {engine.name: engine.drafts for engine in context.config.engines}
    for arm, some in _finished(context).items():
        known = [r.outcome.acceptance_length for r in some if r.outcome.acceptance_length is not None]
        if len(known) >= _MIN_RECORDS and float(np.mean(known)) < _LOST:
            yield problem(
                arm, f"its last {len(known)} answers have {np.mean(known):.2f} tokens per step",
                "restart it; otherwise check that the drafter fits the target", "every draft is verified and rejected",
            )  # fmt: skip
        elif not known and drafts.get(arm):
            yield warning(
                arm, f"its last {len(some)} answers have no acceptance metrics",
                "--enable-per-request-metrics --per-request-spec-decode-metrics summary",
                "the router cannot learn about its drafter, or detect its loss",
            )  # fmt: skip


@check("records", "the acceptance rate is sufficient")
def wasted_drafts(context: DoctorContext) -> Iterator[Finding]:
    """Accepted over drafted tokens: rejected ones were drafted and verified in vain."""
    for arm, some in _finished(context).items():
        rates = [r.outcome.acceptance_rate for r in some if r.outcome.acceptance_rate is not None]
        if len(rates) >= _MIN_RECORDS and _MIN_RATE > (mean := float(np.mean(rates))) > 0:
            yield note(
                arm, f"{mean:.0%} of its drafted tokens were accepted in its last {len(rates)} answers",
                "a lower num_speculative_tokens", "rejected tokens are drafted and verified in vain",
            )  # fmt: skip


@check("records", "engines rarely fail")
def failures(context: DoctorContext) -> Iterator[Finding]:
    """Failures by an engine's fault."""
    tried, failed = Counter[str](), Counter[str]()
    for record in context.attempts:
        tried[record.decision.arm] += record.outcome.status != "cancelled"
        failed[record.decision.arm] += record.outcome.failed
    for arm, count in failed.items():
        if tried[arm] >= _MIN_RECORDS and count > _FAILS * tried[arm]:
            yield warning(
                arm,
                f"{count} of its last {tried[arm]} requests failed",
                "check its log",
                "each failure delays a client",
            )


@check("records", "the policy predicts the times of answers")
def stale_costs(context: DoctorContext) -> Iterator[Finding]:
    """Measured against predicted time per token, as predicted at the decision."""
    for arm, some in _finished(context).items():
        ratios = [ratio for record in some if (ratio := _missed(record)) is not None]
        if len(ratios) >= _MIN_RECORDS and not 1 / _OFF < (middle := float(np.median(ratios))) < _OFF:
            yield warning(
                arm, f"its answers take {middle:.2g} times the predicted time",
                "draftpick retrain, or train on fresh measurements", "engine, load or machine differ from training",
            )  # fmt: skip


def _missed(record: Record) -> float | None:
    """Measured over predicted TPOT of the chosen arm."""
    decision, measured = record.decision, record.outcome.tpot_s
    if decision.predicted_tpot_s is None or measured is None or decision.arm not in decision.probabilities:
        return None
    at = list(decision.probabilities).index(decision.arm)
    shift = decision.residual[at] if decision.residual else 0.0
    return measured / (decision.predicted_tpot_s[at] * float(np.exp(shift)))


@check("records", "the traffic benefits from drafting")
def traffic(context: DoctorContext) -> Iterator[Finding]:
    """Sampled requests and short answers gain little from drafts."""
    some: Sequence[Record] = [record for records in _finished(context).values() for record in records]
    if len(some) < _MIN_RECORDS:
        return
    sampled = float(np.mean([float((record.sampling or {}).get("temperature", 1.0)) > 0 for record in some]))
    if sampled > _SAMPLED:
        yield note(
            "router.records", f"{sampled:.0%} of requests are sampled", "draftpick headroom --records FOLDER",
            "drafts are accepted less often, and some drafters then cost time",
        )  # fmt: skip
    tokens = float(np.median([record.outcome.output_tokens or 0 for record in some]))
    if tokens < _TINY:
        yield note(
            "router.records", f"half of the answers have {tokens:.0f} tokens or fewer",
            "draftpick headroom --records FOLDER", "drafts only speed up the tokens after the first",
        )  # fmt: skip


@check("records", "pools use the forecasts that they are sent")
def ignored_forecasts(context: DoctorContext) -> Iterator[Finding]:
    """A pool reports on its drafters in each answer; an engine without our plugin ignores what it is told of them."""
    sent = Counter(engine_of(r.decision.arm) for r in context.attempts if r.decision.forecast is not None)
    ignored = Counter(engine_of(record.decision.arm) for record in context.attempts if ignores_forecast(record))
    for engine, requests in ignored.items():
        yield warning(
            engine, f"ignored {requests} of the last {sent[engine]} forecasts of its drafters",
            "start it with the flags of `draftpick vllm-args`, or remove its `drafters`",
            "it drafts in its own way: the router's choice of a drafter has no effect, and learns nothing",
        )  # fmt: skip


@check("records", "routing is not slower than one engine alone")
def safe_mode(context: DoctorContext) -> Iterator[Finding]:
    """Routers that measure a loss serve the best engine alone: see `draftpick.router.online.safe_mode`."""
    window = context.config.router.online.safe_mode.window
    latest = [record for record in context.attempts if record.decision.reason == "policy"][-window:]
    safe = Counter(record.decision.policy for record in latest if record.decision.policy.startswith(PREFIX))
    for policy, requests in safe.items():
        arm = policy.removeprefix(PREFIX)
        yield warning(
            arm, f"served {requests} of the last {len(latest)} requests in safe mode", "draftpick events; then retrain",
            f"routing was measured slower than {arm} alone",
        )  # fmt: skip
