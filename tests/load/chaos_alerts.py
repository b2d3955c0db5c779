"""Which alerts each fault of the chaos run should let fire, and which it did.

Rules speak of minutes and a fault is over in seconds, so the run takes the rules with their times divided by `FASTER`:
two seconds of it stand for a minute. What recovers does so at its own pace: an engine that Ray starts again within ten
seconds has been away for five minutes. What compares with yesterday cannot fire within it; promtool's tests let it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.deploy.prometheus import Alert, Prometheus
from tests.load.chaos import suffer
from tests.load.clients import Clients
from tests.load.faults import Chaos, Fault

FASTER = 30.0
LASTS_S = 20.0
"""How long a fault lasts that does not heal by itself: long enough for the slowest alert that is due."""

Named = tuple[str, str]
"""An alert, and the engine that it names, if any."""


@dataclass(frozen=True, slots=True)
class Due:
    """`must`: alerts that a fault has to raise. `may`: those that would be right, too, but hang on chance and speed."""

    must: frozenset[Named] = frozenset()
    may: frozenset[Named] = frozenset()


def _ill(arm: str, *may: Named) -> Due:
    """An engine whose attempts fail: it is said of the engine, and that its replica is left alone."""
    return Due(frozenset({("DraftpickEngineFails", arm), ("DraftpickBreakerOpen", arm)}), frozenset(may))


async def _nothing() -> None:
    """While nothing is wrong, nothing may be said."""


CALM = Fault("calm", _nothing, _nothing, lambda state: True)
_BROKEN = ("DraftpickRequestsFail", "")
# Every engine is replaced at once: the seconds until its new replica serves count as minutes here.
_AWAY = frozenset(
    {("DraftpickNoEngine", "")}
    | {
        (f"Draftpick{name}", arm)
        for name in ("EngineGone", "EngineFails", "BreakerOpen", "LoadUnknown")
        for arm in ("plain", "ngram", "suffix", "math", "pool", "pool/none", "pool/copy", "pool/head")
    }
)
_POOL_FAILS = frozenset({("DraftpickEngineFails", f"pool/{drafter}") for drafter in ("none", "copy", "head")})
"""Attempts are counted by arm, breakers by engine."""
DUE: Mapping[str, Due] = {
    CALM.name: Due(),
    # It has no other replica, and may be away for longer than its alert waits.
    "kill_engine": Due(may=frozenset({("DraftpickEngineGone", "ngram")})),
    # The other replica serves.
    "kill_pool": Due(may=frozenset({("DraftpickEngineGone", "pool"), ("DraftpickBreakerOpen", "pool")})),
    "hang_pool": Due(frozenset({("DraftpickBreakerOpen", "pool")}), _POOL_FAILS),
    "cut_pool_in_mid_draft": Due(may=_POOL_FAILS | {("DraftpickBreakerOpen", "pool"), _BROKEN}),
    "hang": _ill("suffix"),
    # Streams that have begun are cut, and no other engine may go on with them.
    "slow": _ill("suffix", _BROKEN),
    "garbage": _ill("math"),
    # Every other probe succeeds, so that the replica is let in again and again.
    "cut_in_mid_stream": Due(
        frozenset({("DraftpickEngineFails", "ngram")}), frozenset({("DraftpickBreakerOpen", "ngram"), _BROKEN})
    ),
    "refuse": _ill("suffix"),
    "fail": _ill("math"),
    "redeploy_and_scale_down": Due(may=_AWAY),
    "reload_policy": Due(),
    "offer_broken_policy": Due(frozenset({("DraftpickPolicyRejected", "")})),
    "disk_full": Due(frozenset({("DraftpickRecordsDropped", "")})),
    "kill_router": Due(),
}
"""What each fault of `Chaos.mock_faults` is due."""


@dataclass(frozen=True, slots=True)
class Raised:
    """What a fault raised, and what it was due."""

    fault: str
    fired: frozenset[Named]
    due: Due

    @property
    def missing(self) -> frozenset[Named]:
        """What had to fire and did not."""
        return self.due.must - self.fired

    @property
    def unexpected(self) -> frozenset[Named]:
        """What fired and should not have."""
        return self.fired - self.due.must - self.due.may


def lasting(faults: Sequence[Fault]) -> list[Fault]:
    """The same faults, long enough for alerts."""
    return [replace(fault, lasts_s=LASTS_S) for fault in faults]


async def watched(
    chaos: Chaos, faults: Sequence[Fault], clients: Clients, seconds: float, server: Prometheus, bar: Any
) -> list[Raised]:
    """Do these faults as the chaos run does, spread over `seconds`, and say what each raised."""
    began = time.time()
    story = await suffer(chaos, lasting(faults), clients, seconds, bar)
    ahead = time.time() - time.monotonic()
    alerts = await server.fired(began, time.time())
    return raised(alerts, {fault: at + ahead for fault, at in story.done.items()})


def raised(alerts: Sequence[Alert], done: Mapping[str, float]) -> list[Raised]:
    """What began to fire between each fault and the next, in their order; before the first one: the fault "".

    `done`: when each fault was done, in the clock of the alerts.
    """
    order = [("", float("-inf")), *sorted(done.items(), key=lambda one: one[1])]
    ends = [began for _, began in order[1:]] + [float("inf")]
    return [
        Raised(
            fault,
            frozenset((alert.name, alert.arm) for alert in alerts if began <= alert.began < end),
            DUE[fault] if fault else Due(),
        )
        for (fault, began), end in zip(order, ends, strict=True)
    ]
