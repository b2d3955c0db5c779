"""Names of arms: an engine with at most one drafter is one arm, a pool one arm for each drafter."""

from collections.abc import Sequence

NONE = "none"
"""The drafter of a pool that drafts nothing."""
_SEPARATOR = "/"


def pool_arm(engine: str, drafter: str) -> str:
    """Return the arm of a drafter of a pool."""
    return f"{engine}{_SEPARATOR}{drafter}"


def engine_of(arm: str) -> str:
    """Return the engine of an arm."""
    return arm.partition(_SEPARATOR)[0]


def first_arm(name: str, arms: Sequence[str]) -> str:
    """Return the arm of this name, or the first one of the engine of this name: of a pool, the one without drafts."""
    return name if name in arms else next(arm for arm in arms if engine_of(arm) == name)


def drafter_of(arm: str) -> str | None:
    """Return the drafter of a pool's arm; None for an engine that is no pool."""
    return arm.partition(_SEPARATOR)[2] or None
