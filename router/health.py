"""Signals of an engine's health beyond the circuit breakers of its replicas: a new one is a class and an entry in
`draftpick.router.parts`."""

from collections.abc import Collection, Sequence
from typing import ClassVar, Protocol

from draftpick.engines.replicas import UNAVAILABLE_REASONS


class HealthSignal(Protocol):
    """Says which arms should get no request now.

    `reason`: its key in states and explanations; `text`: the same in words, after an arm's name. `suspects`: an
    attribute, empty while all is well, since every request reads it. `fallback`: where it objects to
    every arm, the baseline engine serves, and this is the reason that fallbacks are counted by; None: all arms serve.
    """

    reason: ClassVar[str]
    text: ClassVar[str]
    fallback: ClassVar[str | None]

    @property
    def suspects(self) -> Collection[str]:
        """Arms that may not take any request that `admits` does not let pass."""

    def admits(self, arm: str, in_flight: int) -> bool:
        """Whether a suspect may take one more request beside `in_flight` others, say as a probe."""


def ineligible_reasons(signals: Sequence[HealthSignal]) -> dict[str, str]:
    """Why an engine may not take a request: words by key."""
    return {**UNAVAILABLE_REASONS, **{signal.reason: signal.text for signal in signals}}
