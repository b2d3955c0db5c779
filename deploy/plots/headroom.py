"""The headroom plot: time of every single engine, of routing and of the oracle; gains by slice."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.headroom.estimate import Headroom

_OWN, _OTHERS, _ORACLE = "#d9622b", "#7a8ca3", "#b9c4cf"


def plot_headroom(found: Headroom, worth: float, path: Path) -> None:
    """Write to `path`, in the format of its suffix. Raises ValueError for an unsupported one."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    times = {name: arm.time for name, arm in sorted(found.arms.items(), key=lambda item: item[1].time.value)}
    # Relative to the best single engine, all three have the same scale.
    times["routing"] = _time(found.gain.routed)
    if found.gain.oracle is not None:
        times["oracle"] = _time(found.gain.oracle)
    colours = [{"routing": _OWN, "oracle": _ORACLE}.get(name, _OTHERS) for name in times]
    left.bar(list(times), [one.value for one in times.values()], yerr=_errors(list(times.values())), color=colours)
    left.axhline(1.0, color="black", linewidth=0.8)
    left.tick_params(axis="x", labelrotation=30)
    left.set_ylabel(f"total time over that of {found.best}")
    left.set_title(f"{found.gain.n:,} requests")
    gains = {"all": found.gain.routed} | {name: gain.routed for name, gain in (found.halves | found.slices).items()}
    names = list(gains)[::-1]
    values = [gains[name] for name in names]
    colours = [_OWN if name == "all" else _OTHERS for name in names]
    right.barh(names, [100 * one.value for one in values], xerr=100 * _errors(values), color=colours)
    right.axvline(0, color="black", linewidth=0.8)
    right.axvline(100 * worth, color="black", linewidth=0.8, linestyle=":")
    right.set_xlabel("% of time saved by routing (dotted: threshold)")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _time(gain: Interval) -> Interval:
    return Interval(1 - gain.value, 1 - gain.high, 1 - gain.low)


def _errors(values: list[Interval]) -> Any:
    """Both half-widths [2, n]."""
    return np.maximum([[v.value - v.low for v in values], [v.high - v.value for v in values]], 0.0)
