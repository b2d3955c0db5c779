"""Figures as an engine tells them. One that cannot be is none: it would outweigh all others, or break their sums."""

from typing import Any

MAX_COUNT, MAX_FIGURE = 2**31, 1e9
MAX_TAU = 1e4
"""Longer than any draft."""


def to_count(value: Any) -> int | None:
    """A number of tokens or steps; None for anything else."""
    return value if type(value) is int and 0 <= value < MAX_COUNT else None


def to_figure(value: Any, least: float = 0.0, most: float = MAX_FIGURE) -> float | None:
    """A measured figure within these limits; None for anything else, such as NaN."""
    return float(value) if type(value) in (int, float) and least <= value <= most else None
