"""Figures of several repeats: what lies between them, and how they are shown."""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table

from draftpick.deploy.console import out
from draftpick.policy_training.evaluation.bootstrap import Bootstrap, Floats, bounds
from draftpick.policy_training.evaluation.evaluate import Interval


def spread(values: Sequence[float]) -> Interval:
    """Median of the repeats, with their range."""
    return Interval(float(np.median(values)), min(values), max(values))


def bootstrap_ratio(over: Floats, under: Floats) -> Interval:
    """sum(over) / sum(under) of two values [n] of the same units, with its 95 % bootstrap over them."""
    draws = Bootstrap.of_counts(len(over), 2000, np.random.default_rng(0))
    low, high = bounds(draws.ratios(over, under))
    return Interval(float(over.sum() / under.sum()), float(low), float(high))


def show(figures: Mapping[str, Interval]) -> None:
    """A table of all of them."""
    table = Table("figure", "middle", "least", "most")
    for name, figure in figures.items():
        table.add_row(name, f"{figure.value:.3f}", f"{figure.low:.3f}", f"{figure.high:.3f}")
    out.print(table)
