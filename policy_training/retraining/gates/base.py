"""What gates are and what they find."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

MARGIN = 0.02
"""Share of the time that may be lost."""
MIN_PAIRED = 20
"""Requests with the times of all arms that are better evidence than any number of weighted records."""


@dataclass(frozen=True, slots=True)
class Check:
    """One condition: what was found (not finite: nothing is known yet), its limit, and both in words."""

    name: str
    passed: bool
    value: float
    limit: float
    why: str


def as_json(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Of checks: all fields; null for what is not finite, which JSON does not know."""
    return [asdict(c) | {"value": c.value if math.isfinite(c.value) else None} for c in checks]


@dataclass(frozen=True, slots=True)
class NotMade:
    """A check that could not be made, and the reason."""

    why: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a candidate may go on, and why. `not_made`: names of gates that could not judge, with the reason."""

    passed: bool
    checks: tuple[Check, ...]
    not_made: Mapping[str, str] = field(default_factory=dict)

    def joined(self, other: "Verdict") -> "Verdict":
        """Both: passed where both are."""
        not_made = {**self.not_made, **other.not_made}
        return Verdict(self.passed and other.passed, (*self.checks, *other.checks), not_made)

    def as_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "checks": as_json(self.checks)}


Inputs = TypeVar("Inputs")


@dataclass(frozen=True, slots=True)
class Gate(Generic[Inputs]):
    """A check by its name. `check` gives None where another gate decides instead."""

    name: str
    check: Callable[[Inputs], Check | NotMade | None]


def evaluate(gates: Sequence[Gate[Inputs]], inputs: Inputs) -> Verdict:
    """Make all checks. Raises what they raise."""
    found = {gate.name: gate.check(inputs) for gate in gates}
    checks = tuple(one for one in found.values() if isinstance(one, Check))
    not_made = {name: one.why for name, one in found.items() if isinstance(one, NotMade)}
    return Verdict(all(check.passed for check in checks), checks, not_made)


def skipped(gates: Sequence[Gate[Inputs]], why: str) -> Verdict:
    """The verdict of gates that do not judge."""
    return Verdict(True, (), {gate.name: why for gate in gates})
