"""The report's plots, as inline SVG."""

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from draftpick.policy_training.benchmark.paper_replication import Alpha
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.learners import DEFAULT

Floats = npt.NDArray[np.float64]
_OWN, _OTHERS = "#d9622b", "#7a8ca3"


def ladder(results: Mapping[str, Mapping[str, Mapping[str, Interval]]], splits: Sequence[str]) -> str:
    """Share of the oracle's gain by learner, one panel per split."""
    figure, panels = plt.subplots(
        1, len(splits), figsize=(3.2 * len(splits), 3.6), sharey=True, layout="constrained", squeeze=False
    )
    for axes, split in zip(panels[0], splits, strict=True):
        shown = {name: scores[split]["share_of_oracle"] for name, scores in results.items() if split in scores}
        _bars(axes, shown)
        axes.set_title(split)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlim(max(-1.0, min(s.low for s in shown.values()) - 0.05), 1.0)
    return _svg(figure)


def curve(shares: Mapping[int, Interval]) -> str:
    """Share of the oracle's gain by number of requests."""
    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    sizes = list(shares)
    axes.fill_between(sizes, [s.low for s in shares.values()], [s.high for s in shares.values()], color=_OWN, alpha=0.2)
    axes.plot(sizes, [s.value for s in shares.values()], "o-", color=_OWN)
    axes.set_xscale("log")
    axes.set_xticks(sizes, map(str, sizes))
    axes.minorticks_off()
    axes.set_xlabel("requests")
    axes.set_ylabel("share of the oracle's gain")
    return _svg(figure)


def shares(by_kind: Mapping[str, Mapping[str, float]]) -> str:
    """Share of each engine by task."""
    kinds, arms = list(by_kind), list(next(iter(by_kind.values())))
    figure, axes = plt.subplots(figsize=(1.6 + 0.9 * len(arms), 1.2 + 0.4 * len(kinds)), layout="constrained")
    axes.imshow([[by_kind[k][a] for a in arms] for k in kinds], cmap="Oranges", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(arms)), arms)
    axes.set_yticks(range(len(kinds)), kinds)
    for i, kind in enumerate(kinds):
        for j, arm in enumerate(arms):
            axes.text(j, i, f"{by_kind[kind][arm]:.0%}", ha="center", va="center")
    return _svg(figure, frame=True)


def regret(lost: Mapping[str, Floats]) -> str:
    """Cumulative seconds lost to the oracle, by request."""
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for name, seconds in sorted(lost.items(), key=lambda item: item[1][-1]):
        own = name == "policy"
        axes.plot(
            seconds, color=_OWN if own else None, linewidth=2 if own else 1, label=f"{name} ({seconds[-1]:.0f} s)"
        )
    axes.set_xlabel("requests")
    axes.set_ylabel("seconds lost to the oracle")
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def calibration(predicted: Floats, measured: Floats) -> str:
    """Predicted against measured tau: every pair, and the mean of each decile of the predictions."""
    figure, axes = plt.subplots(figsize=(4.4, 4.2), layout="constrained")
    some = np.random.default_rng(0).permutation(len(predicted))[:3000]
    axes.scatter(predicted[some], measured[some], s=3, alpha=0.15, color=_OTHERS, rasterized=True)
    tenths = np.array_split(np.argsort(predicted), 10)
    axes.plot([predicted[t].mean() for t in tenths], [measured[t].mean() for t in tenths], "o-", color=_OWN)
    most = float(np.quantile(measured, 0.99))
    axes.plot([1, most], [1, most], color="black", linewidth=0.8)
    axes.set_xlim(1, most)
    axes.set_ylim(1, most)
    axes.set_xlabel("predicted tau")
    axes.set_ylabel("measured tau")
    return _svg(figure)


def importance(lost: Mapping[str, float]) -> str:
    """Share of the gain lost without each feature."""
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.3 * len(lost)), layout="constrained")
    names = sorted(lost, key=lambda name: lost[name])
    axes.barh(names, [lost[name] for name in names], color=_OTHERS)
    axes.axvline(0, color="black", linewidth=0.8)
    return _svg(figure)


def alphas(swept: Sequence[Alpha]) -> str:
    """The seed paper's policy at every alpha: its choices, and the resulting time."""
    figure, (chosen, time) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    at = [one.alpha for one in swept]
    chosen.plot(at, [one.alignment for one in swept], "o-", color=_OWN, label="alignment (ROUGE-L)")
    chosen.plot(at, [one.speed for one in swept], "o-", color=_OTHERS, label="1 - cost of drafting")
    chosen.plot(at, [one.share_of_none for one in swept], "o--", color="#b9c3cf", label="share without a drafter")
    chosen.set_ylim(0, 1)
    time.plot(at, [one.vs_plain for one in swept], "o-", color=_OWN, label="against no drafter")
    time.plot(at, [one.vs_best_fixed for one in swept], "o-", color=_OTHERS, label="against the best engine")
    time.axhline(1, color="black", linewidth=0.8)
    for axes in (chosen, time):
        axes.set_xlabel("alpha")
        axes.legend(frameon=False, fontsize=8)
    time.set_ylabel("speed-up")
    return _svg(figure)


def _bars(axes: Any, values: Mapping[str, Interval]) -> None:
    names = list(values)[::-1]
    middle = np.asarray([values[name].value for name in names])
    spread = [middle - [values[name].low for name in names], [values[name].high for name in names] - middle]
    colours = [_OWN if name == DEFAULT else _OTHERS for name in names]
    axes.barh(names, middle, xerr=spread, color=colours, error_kw={"linewidth": 0.8})


def _svg(figure: Any, frame: bool = False) -> str:
    if not frame:
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]
