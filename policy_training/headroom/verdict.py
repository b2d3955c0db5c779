"""Texts: the reasons against routing, and the verdict with all figures."""

from collections.abc import Sequence
from dataclasses import dataclass

from draftpick.policy_training.evaluation.ope import MIN_EFFECTIVE
from draftpick.policy_training.headroom.crossover import Bucket, crossover, lost_share
from draftpick.policy_training.headroom.estimate import Headroom, Verdict
from draftpick.policy_training.headroom.from_logged import SUPPORTED
from draftpick.policy_training.headroom.simulated import Loaded

_ALL = 0.95
_MOSTLY = 0.5
_SAMPLED = 0.9
_TINY = 16.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """Findings: `buckets` of load; `plain`, the baseline arm, if known; `loaded`, a simulation; `overhead`, the
    router's share of a request's time; `sampled`, the share of sampled requests."""

    found: Headroom
    worth: float
    buckets: Sequence[Bucket] = ()
    plain: str | None = None
    loaded: Loaded | None = None
    overhead: float | None = None
    sampled: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """Return "worth it" only if that also holds under load, where simulated."""
        verdicts = [self.found.verdict, *([self.loaded.verdict(self.worth)] if self.loaded else [])]
        return next((one for one in ("not worth it", "cannot tell") if one in verdicts), "worth it")


def reasons_against(evidence: Evidence) -> list[str]:
    """All reasons against routing here, one sentence each."""
    return [
        *_insufficient_data(evidence),
        *_one_engine_suffices(evidence),
        *_small_potential(evidence),
        *_slow_under_load(evidence),
    ]


def _insufficient_data(evidence: Evidence) -> list[str]:
    found, reasons = evidence.found, []
    if found.supported is not None and found.supported < SUPPORTED:
        reasons.append(
            f"for {1 - found.supported:.0%} of the requests the logging policy never takes the evaluated choice: "
            "set router.explore or router.shadow.share"
        )
    elif found.effective is not None and found.effective < MIN_EFFECTIVE:
        reasons.append(
            f"the effective sample size is {found.effective:.0f} requests, and {MIN_EFFECTIVE:.0f} "
            "are needed: set router.explore or router.shadow.share"
        )
    elif found.verdict == "cannot tell":
        gain = found.gain.routed
        reasons.append(f"the interval {gain.low:.1%} to {gain.high:.1%} includes gains that pay and gains that do not")
    return reasons


def _one_engine_suffices(evidence: Evidence) -> list[str]:
    found, reasons = evidence.found, []
    name, most = max(found.arms.items(), key=lambda item: item[1].share)
    if most.share >= _ALL:
        reasons.append(f"{name} would get {most.share:.0%} of the requests: it alone is nearly as fast")
    oracle = found.gain.oracle
    if oracle is not None and oracle.high < evidence.worth:
        reasons.append(f"not even an oracle that knows each answer saves {evidence.worth:.1%}")
    losing = [f"{kind} ({gain.routed.value:.1%})" for kind, gain in found.slices.items() if gain.routed.high < 0]
    if losing:
        reasons.append(f"routing is slower than {found.best} on {', '.join(losing)}")
    return reasons


def _small_potential(evidence: Evidence) -> list[str]:
    found, reasons = evidence.found, []
    half = found.halves.get("sampled")
    if evidence.sampled > _SAMPLED and half is not None and half.routed.high < evidence.worth:
        reasons.append(f"{evidence.sampled:.0%} of the requests are sampled, where drafts gain little")
    if found.output_tokens < _TINY:
        reasons.append(
            f"half of the answers have {found.output_tokens:.0f} tokens or fewer, and drafts only speed up "
            "the tokens after the first one"
        )
    if evidence.overhead is not None and evidence.overhead > evidence.worth / 3:
        reasons.append(f"the router itself takes {evidence.overhead:.1%} of a request's time")
    return reasons


def _slow_under_load(evidence: Evidence) -> list[str]:
    """Drafting does not pay under load, or more replicas of one engine are faster."""
    reasons, loaded = [], evidence.loaded
    if evidence.plain is not None and (lost := lost_share(evidence.buckets, evidence.plain)) > _MOSTLY:
        reasons.append(f"{lost:.0%} of the answers were at loads where {evidence.plain}, without drafts, is fastest")
    if loaded is not None and loaded.verdict(evidence.worth) != "worth it":
        reasons.append(
            f"at {loaded.rate:g} requests a second, {loaded.engines} engines {loaded.single} take "
            f"{loaded.single_s.value:.3g} s a request, and one of each behind the router {loaded.routed_s.value:.3g} s"
        )
    return reasons


def crossovers(evidence: Evidence) -> list[str]:
    """The load from which each arm is slower than the baseline."""
    plain = evidence.plain
    if plain is None:
        return []
    found = {arm: crossover(evidence.buckets, arm, plain) for arm in evidence.found.arms if arm != plain}
    at = {arm: f"from {one.least} requests in flight on it" for arm, one in found.items() if one is not None}
    at |= {arm: "at any load" for arm, one in found.items() if one is not None and one.least == 1}
    return [f"{arm} is slower than {plain} {when}" for arm, when in at.items()]


def describe(evidence: Evidence) -> str:
    """The verdict in one paragraph."""
    found, worth = evidence.found, evidence.worth
    gain, oracle = found.gain.routed, found.gain.oracle
    what = "less" if gain.value >= 0 else "more"
    text = (
        f"on {found.gain.n:,} requests routing takes {abs(gain.value):.1%} {what} time than {found.best} alone "
        f"(95 %: {-gain.high:+.1%} to {-gain.low:+.1%}); {worth:.1%} less would pay."
    )
    if oracle is not None:
        share = found.share_of_oracle
        part = f", of which routing gets {max(share, 0.0):.0%}" if share is not None else ""
        text += f" An oracle would take {oracle.value:.1%} less{part}."
    if found.worst is not None:
        kind, least = found.worst[0], found.worst[1].routed
        text += f" It saves least on {kind}: {least.value:.1%} ({least.low:.1%} to {least.high:.1%})."
    if found.needs is not None:
        text += f" A verdict needs about {found.needs:,} more requests."
    return text
