"""Plots of simulated fleets."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from draftpick.policy_training.simulator.capacity_plan import Plan

_OWN, _OTHERS = "#d9622b", "#7a8ca3"
_FIGURES = {"mean": "latency_s/mean", "P50": "latency_s/p50", "P95": "latency_s/p95", "P99": "latency_s/p99"}


def plot_latencies(latency_s: Mapping[str, npt.NDArray[np.float64]], path: Path) -> None:
    """Cumulative distribution of latency by strategy; single engines are dashed."""
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for name, seconds in latency_s.items():
        alone = name.startswith("[")
        axes.plot(
            np.sort(seconds), np.linspace(0, 1, len(seconds)), "--" if alone else "-", linewidth=1 if alone else 2,
            label=name,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("seconds from arrival to the last token")
    axes.set_ylabel("share of the requests")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def plot_plan(plan: Plan, path: Path) -> None:
    """Replicas by engine, and latencies compared with the best single engine."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    drawn = left.bar(list(plan.replicas), list(plan.replicas.values()), color=_OWN)
    left.bar_label(drawn)
    left.set_title("replicas")
    places = np.arange(len(_FIGURES))
    for shift, name, figures, colour in (
        (-0.2, " + ".join(plan.replicas), plan.figures, _OWN),
        (0.2, f"{next(iter(plan.single))} alone", plan.single_figures, _OTHERS),
    ):
        found = [figures[key] for key in _FIGURES.values()]
        spread = [[f.value - f.low for f in found], [f.high - f.value for f in found]]
        right.bar(places + shift, [f.value for f in found], 0.4, yerr=spread, color=colour, label=name)
    right.set_xticks(places, list(_FIGURES))
    right.set_ylabel("latency, seconds")
    right.set_title(f"{plan.speed.value:.2f} [{plan.speed.low:.2f}, {plan.speed.high:.2f}] times as fast")
    right.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _save(figure: "plt.Figure", path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
