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
    """One finding of a check. `where`: the configuration field, or the engine; `check`: its name."""

    level: Level
    where: str
    what: str
    cure: str = ""
    why: str = ""
    check: str = ""


def problem(where: str, what: str, fix: str, why: str) -> Finding:
    """A failure, or wrong figures or answers."""
    return Finding("problem", where, what, fix, why)


def warning(where: str, what: str, fix: str, why: str) -> Finding:
    """A loss of time, safety or insight."""
    return Finding("warning", where, what, fix, why)


def note(where: str, what: str, fix: str, why: str) -> Finding:
    """Information."""
    return Finding("note", where, what, fix, why)


CheckFunction = Callable[[DoctorContext], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its subject, and the statement that holds without findings."""

    name: str
    about: About
    ok_message: str
    function: CheckFunction

    def __call__(self, context: DoctorContext) -> list[Finding]:
        """Return the findings, or one finding that all is well."""
        try:
            found = [replace(finding, check=self.name) for finding in self.function(context)]
        except (TypeError, ValueError) as error:  # vLLM's arguments are passed through unvalidated
            said = f"a value of the wrong type for vLLM: {error}"
            found = [Finding("problem", "engine_kwargs, drafter", said, "fix its type", check=self.name)]
        return found or [Finding("ok", "", self.ok_message, check=self.name)]


CHECKS: list[Check] = []


def check(about: About, ok_message: str) -> Callable[[CheckFunction], CheckFunction]:
    """Register a check under the name of its function. `ok_message`: the statement that holds without findings."""

    def register(looks: CheckFunction) -> CheckFunction:
        CHECKS.append(Check(looks.__name__, about, ok_message, looks))
        return looks

    return register
