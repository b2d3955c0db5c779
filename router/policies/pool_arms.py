"""Serves the arms of a pool by a policy that was trained on engines with one drafter each, and the other way round.

Acceptance depends on the drafter, not on the engine that holds it: an arm that a policy does not know takes the
predictions of the arm with the same drafter. Costs come from the engines' profiles.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from draftpick.engines.arms import NONE, drafter_of
from draftpick.router.policies.shapes import Arrays, Shapes

MENDING = 0.85
"""Time that a pool takes over the one that its own profile and its fastest drafter's acceptance give, until measured:
as much as `suffix` alone was slower on greedy prompts of dev (tests.bench.real_text), its shorter step considered."""
MENDING_DEVIATION = 0.15
"""Standard deviation of the logarithm of that ratio over requests: greedy prompts of dev, tests.bench.real_text."""
_PLAIN = "plain"
"""Usual name of an engine without a drafter."""
_INDEXED = "domain_arms"
"""An array of indices of arms: a policy with one serves its own arms only."""


def serve_arms(
    manifest: dict[str, Any], arrays: Arrays, arms: Sequence[str], shapes: Shapes
) -> tuple[dict[str, Any], Arrays]:
    """Return an artefact for these arms; unchanged if it knows them all, or lacks the drafter of one.

    `shapes`: of its arrays, by name.
    """
    known = list(manifest["arms"])
    columns = [column_of(arm, known) for arm in arms]
    if set(arms) <= set(known) or None in columns or _INDEXED in arrays:
        return manifest, arrays
    options = dict(manifest.get("options", {}))
    for name in ("default", "arm"):
        if options.get(name) in known and (at := known.index(options[name])) in columns:
            options[name] = arms[columns.index(at)]
        elif name in options:
            options[name] = arms[0]
    taken = dict(arrays)
    for name, shape in shapes.items():
        for axis, size in enumerate(shape):
            if size == "arms" and name in taken:
                taken[name] = np.take(taken[name], columns, axis=axis)  # type: ignore[arg-type]  # no None is left
    return {**manifest, "arms": list(arms), "options": options}, taken


def column_of(arm: str, known: Sequence[str]) -> int | None:
    """Index of the arm itself, or of one with the same drafter."""
    if arm in known:
        return known.index(arm)
    drafters = [drafter_name(one) for one in known]
    return drafters.index(drafter_name(arm)) if drafter_name(arm) in drafters else None


def shares_drafter(arms: Sequence[str]) -> list[bool]:
    """Whether an arm is an engine of its own whose drafter, or lack of one, a pool has as well."""
    pooled = {drafter_name(arm) for arm in arms if drafter_of(arm) is not None}
    return [drafter_of(arm) is None and drafter_name(arm) in pooled for arm in arms]


def drafter_name(arm: str) -> str:
    """The drafter of an arm: of an engine that is no pool, its own name, which is `none` for `plain`."""
    name = drafter_of(arm) or arm
    return NONE if name == _PLAIN else name
