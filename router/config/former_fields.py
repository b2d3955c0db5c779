"""Former names of configuration fields.

A former field is accepted for one release. Its value moves to the new field, and a `FormerField` warning names both.
A configuration that sets both is invalid.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

FLEET: Mapping[str, str] = {
    "router.explore": "router.exploration.rate",
    "router.exploration.near": "router.exploration.max_slowdown",
    "router.exploration.floor": "router.exploration.min_probability",
    "router.shadow.share": "router.shadow.sample_rate",
    "router.online.correction.memory": "router.online.correction.window",
    "router.online.correction.most_step": "router.online.correction.max_log_step",
    "router.online.drift.allowance": "router.online.drift.page_hinkley_delta",
    "router.online.drift.threshold": "router.online.drift.page_hinkley_lambda",
    "router.online.drift.stability": "router.online.drift.psi_threshold",
    "router.load.plain": "router.load.baseline_engine",
    "router.load.report_every_s": "router.load.report_interval_s",
    "router.prefixes": "router.prefix_cache",
    "router.prefixes.most_bytes": "router.prefix_cache.max_bytes",
    "router.scaling": "router.autoscaling",
    "router.scaling.budget": "router.autoscaling.max_accelerators",
    "router.scaling.every_s": "router.autoscaling.interval_s",
    "router.limits": "router.admission",
    "router.breaker.failures": "router.breaker.consecutive_failures",
    "router.breaker.failure_share": "router.breaker.failure_rate",
    "router.breaker.open_s": "router.breaker.base_ejection_s",
    "router.breaker.max_open_s": "router.breaker.max_ejection_s",
    "router.quarantine.collapse": "router.quarantine.collapse_ratio",
    "router.quarantine.chance": "router.quarantine.false_alarm_probability",
    "router.allow_pin": "router.allow_engine_pinning",
    "router.stall_timeout_s": "router.stream_idle_timeout_s",
    "router.continue_streams": "router.resume_streams",
    "router.logs.requests": "router.logs.access_log",
    "router.tracing.share": "router.tracing.sample_rate",
}
"""Fleet: former path -> new path. A section precedes its fields."""

LIVE: Mapping[str, str] = {"explore": "exploration.rate", "limits": "admission"}
"""The same for Serve's `user_config`."""

TRAFFIC: Mapping[str, str] = {
    "kinds": "tasks",
    "crowds": "bursts",
    "crowds.every_s": "bursts.interval_s",
    "crowds.lasts_s": "bursts.duration_s",
    "crowds.times": "bursts.rate_factor",
}
"""The same for a traffic specification (`draftpick simulate`, `draftpick plan`)."""

_ABSENT: Any = object()


class FormerField(FutureWarning):
    """A configuration uses the former name of a field."""


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collect the `FormerField` messages of the block, without duplicates, instead of showing them."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FormerField)
        try:
            yield found
        finally:
            found += dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, FormerField))
    for one in caught:
        if not issubclass(one.category, FormerField):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def rename_former(data: Any, table: Mapping[str, str]) -> Any:
    """Return a copy of the raw configuration `data` with former fields moved to their new paths.

    Warns of each. Raises `ValueError` for a field that is set under both names.
    """
    if not isinstance(data, dict):
        return data
    renamed = copy.deepcopy(data)
    deepest_first = sorted(table, key=lambda path: path.count("."), reverse=True)
    moved = [(old, _pop(renamed, old)) for old in deepest_first]
    for old, value in reversed(moved):  # sections before their fields
        if value is _ABSENT:
            continue
        _place(renamed, old, table[old], value)
        warnings.warn(f"{old} is now called {table[old]}", FormerField, stacklevel=2)
    return renamed


def _pop(data: dict[str, Any], path: str) -> Any:
    *above, name = path.split(".")
    holder: Any = data
    for part in above:
        holder = holder.get(part) if isinstance(holder, dict) else None
    return holder.pop(name, _ABSENT) if isinstance(holder, dict) else _ABSENT


def _place(data: dict[str, Any], old: str, new: str, value: Any) -> None:
    *above, name = new.split(".")
    holder: Any = data
    for part in above:
        holder = holder.setdefault(part, {}) if isinstance(holder, dict) else None
    if not isinstance(holder, dict):
        raise ValueError(f"{old} is now called {new}, and {'.'.join(above)} is not a mapping")
    if name in holder:
        raise ValueError(f"{old} and {new} are one field (remove {old}, its former name)")
    holder[name] = value
