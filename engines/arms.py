"""Names of arms: an engine with at most one drafter is one arm, a pool one arm for each drafter."""

from collections.abc import Collection

NONE = "none"
"""The drafter of a pool that drafts nothing."""
_SEPARATOR = "/"


def pool_arm(engine: str, drafter: str) -> str:
    """Return the arm of a drafter of a pool."""
    return f"{engine}{_SEPARATOR}{drafter}"


def engine_of(arm: str) -> str:
    """Return the engine of an arm."""
    return arm.partition(_SEPARATOR)[0]


def default_arm(name: str, arms: Collection[str]) -> str:
    """Return the arm of a configured name: of a pool, the one without drafts; else the name itself."""
    plain = pool_arm(name, NONE)
    return plain if name not in arms and plain in arms else name


def drafter_of(arm: str) -> str | None:
    """Return the drafter of a pool's arm; None for an engine that is no pool."""
    return arm.partition(_SEPARATOR)[2] or None
