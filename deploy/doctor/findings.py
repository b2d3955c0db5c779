"""Findings, and the registry of the checks that make them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from draftpick.deploy.doctor.context import About, DoctorContext

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


def problem(where: str, what: str, fix: str, why: str) -> Finding:
    """What fails, or makes figures or answers wrong."""
    return Finding("problem", where, what, fix, why)


def warning(where: str, what: str, fix: str, why: str) -> Finding:
    """What costs time, safety or insight."""
    return Finding("warning", where, what, fix, why)


def note(where: str, what: str, fix: str, why: str) -> Finding:
    """What is worth knowing."""
    return Finding("note", where, what, fix, why)


CheckFunction = Callable[[DoctorContext], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what it looks at, and what is true where it finds nothing."""

    name: str
    about: About
    ok_message: str
    function: CheckFunction

    def __call__(self, context: DoctorContext) -> list[Finding]:
        """What it finds, or one finding that all is well."""
        try:
            found = [replace(finding, check=self.name) for finding in self.function(context)]
        except (TypeError, ValueError) as error:  # vLLM's arguments are passed through, whatever a user wrote
            said = f"a value of another type than vLLM's: {error}"
            found = [Finding("problem", "engine_kwargs, drafter", said, "mend its type", check=self.name)]
        return found or [Finding("ok", "", self.ok_message, check=self.name)]


CHECKS: list[Check] = []


def check(about: About, ok_message: str) -> Callable[[CheckFunction], CheckFunction]:
    """Register a check under the name of its function. `ok_message`: what is true where it finds nothing."""

    def register(looks: CheckFunction) -> CheckFunction:
        CHECKS.append(Check(looks.__name__, about, ok_message, looks))
        return looks

    return register
