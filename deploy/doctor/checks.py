"""Findings, and the registry of the checks that make them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from deploy.doctor.case import About, Case

Level = Literal["ok", "note", "warning", "problem"]
LEVELS: tuple[Level, ...] = ("problem", "warning", "note", "ok")
"""The worst first. problem: it fails, or gives wrong figures or answers. warning: it costs time, safety or insight.
note: worth knowing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found. `where`: the field of the configuration, or the engine; `check`: who says so."""

    level: Level
    where: str
    what: str
    cure: str = ""
    why: str = ""
    check: str = ""


def problem(where: str, what: str, cure: str, why: str) -> Finding:
    """What fails, or makes figures or answers wrong."""
    return Finding("problem", where, what, cure, why)


def warning(where: str, what: str, cure: str, why: str) -> Finding:
    """What costs time, safety or insight."""
    return Finding("warning", where, what, cure, why)


def note(where: str, what: str, cure: str, why: str) -> Finding:
    """What is worth knowing."""
    return Finding("note", where, what, cure, why)


Looks = Callable[[Case], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what it looks at, and what is true where it finds nothing."""

    name: str
    about: About
    well: str
    looks: Looks

    def __call__(self, case: Case) -> list[Finding]:
        """What it finds, or one finding that all is well."""
        try:
            found = [replace(finding, check=self.name) for finding in self.looks(case)]
        except (TypeError, ValueError) as error:  # vLLM's arguments are passed through, whatever a user wrote
            said = f"a value of another type than vLLM's: {error}"
            found = [Finding("problem", "engine_kwargs, drafter", said, "mend its type", check=self.name)]
        return found or [Finding("ok", "", self.well, check=self.name)]


CHECKS: list[Check] = []


def check(about: About, well: str) -> Callable[[Looks], Looks]:
    """Register a check under the name of its function. `well`: what is true where it finds nothing."""

    def register(looks: Looks) -> Looks:
        CHECKS.append(Check(looks.__name__, about, well, looks))
        return looks

    return register
