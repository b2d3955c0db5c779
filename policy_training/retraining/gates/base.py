"""The interface and the results of gates."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

MARGIN = 0.02
"""Maximum loss as a share of the time."""
MIN_PAIRED = 20
"""Minimum requests with the times of all arms to use instead of weighted records."""


@dataclass(frozen=True, slots=True)
class Check:
    """One condition: the value (not finite: unknown yet), its limit, and both in words."""

    name: str
    passed: bool
    value: float
    limit: float
    why: str


def as_json(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Fields of the checks; null for values that are not finite, which JSON lacks."""
    return [asdict(c) | {"value": c.value if math.isfinite(c.value) else None} for c in checks]


@dataclass(frozen=True, slots=True)
class NotMade:
    """A skipped check, and the reason."""

    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a candidate passes, and why. `not_made`: skipped gates by name, with the reason."""

    passed: bool
    checks: tuple[Check, ...]
    not_made: Mapping[str, str] = field(default_factory=dict)

    def joined(self, other: "Verdict") -> "Verdict":
        """Combine; passed if both are."""
        not_made = {**self.not_made, **other.not_made}
        return Verdict(self.passed and other.passed, (*self.checks, *other.checks), not_made)

    def as_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "checks": as_json(self.checks)}


Inputs = TypeVar("Inputs")


@dataclass(frozen=True, slots=True)
class Gate(Generic[Inputs]):
    """A named check. `check` returns None if another gate decides instead."""

    name: str
    check: Callable[[Inputs], Check | NotMade | None]


def evaluate(gates: Sequence[Gate[Inputs]], inputs: Inputs) -> Verdict:
    """Run all checks. Raises what they raise."""
    found = {gate.name: gate.check(inputs) for gate in gates}
    checks = tuple(one for one in found.values() if isinstance(one, Check))
    not_made = {name: one.why for name, one in found.items() if isinstance(one, NotMade)}
    return Verdict(all(check.passed for check in checks), checks, not_made)


def skipped(gates: Sequence[Gate[Inputs]], why: str) -> Verdict:
    """The verdict of skipped gates."""
    return Verdict(True, (), {gate.name: why for gate in gates})
