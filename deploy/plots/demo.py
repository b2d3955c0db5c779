"""Plots of the demo, drawn with matplotlib's file backend."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.colors import TwoSlopeNorm

from draftpick.policy_training.evaluation.evaluate import Evaluation


def plot_demo(result: Evaluation, default: str, path: Path) -> None:
    """Speed-up of engines, policy and oracle over the default engine; the policy's shares by task."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    plain = result.time_s[default]
    bars = {**result.time_s, "policy": result.policy_time_s, "oracle": result.oracle_time_s}
    colours = ["#7a8ca3"] * len(result.time_s) + ["#d9622b", "#b9c4cf"]
    left.tick_params(axis="x", labelrotation=30)
    drawn = left.bar(list(bars), [plain / seconds for seconds in bars.values()], color=colours)
    left.bar_label(drawn, fmt="%.2fx", padding=2)
    left.axhline(1.0, color="black", linewidth=0.8)
    left.set_ylabel(f"speed-up over {default} (total time)")
    left.set_title(f"{result.n} held-out prompts")
    kinds = [kind for kind in result.shares if kind != "all"]
    start = [0.0] * len(kinds)
    for i, arm in enumerate(result.time_s):
        share = [result.shares[kind][arm] for kind in kinds]
        right.barh(kinds, share, left=start, label=arm, color=plt.cm.Set2(i))
        start = [a + b for a, b in zip(start, share, strict=True)]
    right.set_xlabel("share of traffic")
    right.set_title("the policy's choices by task")
    right.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def heat_map(
    values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], path: Path, what: str
) -> None:
    """Speed-ups [rows, columns] as colours around 1, with values, the best of a column in bold."""
    figure, axes = plt.subplots(figsize=(1.6 + 0.9 * len(columns), 1.2 + 0.45 * len(rows)), layout="constrained")
    table = np.asarray(values)
    axes.imshow(table, cmap="RdYlGn", norm=TwoSlopeNorm(1, 0.4, max(2.0, float(np.nanmax(table)))), aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            weight = "bold" if value == np.nanmax(table[:, j]) else "normal"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", weight=weight)
    axes.set_title(what)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_search(speedups: Sequence[float], attention: Sequence[bool], mlp: Sequence[bool], path: Path) -> None:
    """Speed-up by trial with the best so far, and the sub-layers of the best choice."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=(3, 2), layout="constrained")
    best = [max(speedups[: i + 1]) for i in range(len(speedups))]
    left.plot(speedups, "o", markersize=3, color="#7a8ca3", label="trial")
    left.plot(best, color="#d9622b", label="best so far")
    left.axhline(1.0, color="black", linewidth=0.8)
    left.set_xlabel("trial")
    left.set_ylabel("speed-up over the baseline")
    left.legend(frameon=False)
    left.spines[["top", "right"]].set_visible(False)
    right.imshow([attention, mlp], cmap="Greys", aspect="auto", vmin=0, vmax=1)
    right.set_yticks([0, 1], ["attention", "MLP"])
    right.set_xlabel("layer")
    right.set_title("kept (black) and dropped")
    figure.savefig(path, dpi=130)
    plt.close(figure)
