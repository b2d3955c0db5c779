"""Health signals of engines beyond the circuit breakers of replicas: a new one is a class and an entry in
`draftpick.router.parts`."""

from collections.abc import Collection, Sequence
from typing import ClassVar, Protocol, runtime_checkable

from draftpick.engines.replicas import UNAVAILABLE_REASONS


class HealthSignal(Protocol):
    """Names arms that should get no requests now.

    `reason`: its key in states and explanations; `text`: the same in words, after an arm's name. `suspects`: an
    attribute, empty in the normal case, since every request reads it. `fallback`: if it rejects every arm, the baseline
    engine serves, and fallbacks are counted under this reason; None: all arms serve.
    """

    reason: ClassVar[str]
    text: ClassVar[str]
    fallback: ClassVar[str | None]

    @property
    def suspects(self) -> Collection[str]:
        """Arms that only take requests passed by `admits`."""

    def admits(self, arm: str, in_flight: int) -> bool:
        """True if a suspect may take one more request while `in_flight` others run, for example a probe."""


@runtime_checkable
class KeptByAdapter(Protocol):
    """A signal whose findings differ by adapter of the target."""

    def of(self, adapter: str) -> HealthSignal:
        """Return the signal for requests of an adapter, or for those of none (empty)."""


def signals_of(signals: Sequence[HealthSignal], adapter: str) -> Sequence[HealthSignal]:
    """Return the signals that hold for requests of an adapter of the target, or of none (empty)."""
    return [one.of(adapter) if isinstance(one, KeptByAdapter) else one for one in signals] if adapter else signals


def ineligible_reasons(signals: Sequence[HealthSignal]) -> dict[str, str]:
    """Reasons why an engine is ineligible, in words by key."""
    return {
        **UNAVAILABLE_REASONS,
        "unable": "cannot take this request",
        **{signal.reason: signal.text for signal in signals},
    }
