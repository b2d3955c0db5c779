"""Figures of several repeats: what lies between them, and how they are shown."""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table

from draftpick.deploy.console import out
from draftpick.policy_training.evaluation.evaluate import Interval


def spread(values: Sequence[float]) -> Interval:
    """Median of the repeats, with their range."""
    return Interval(float(np.median(values)), min(values), max(values))


def show(figures: Mapping[str, Interval]) -> None:
    """A table of all of them."""
    table = Table("figure", "middle", "least", "most")
    for name, figure in figures.items():
        table.add_row(name, f"{figure.value:.3f}", f"{figure.low:.3f}", f"{figure.high:.3f}")
    out.print(table)
