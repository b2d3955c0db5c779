"""Checks the arrays of an artefact before use."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from draftpick.router.errors import PolicyRejected

Arrays = dict[str, npt.NDArray[np.float32]]
Shapes = Mapping[str, tuple[str | int, ...]]
"""Shapes by array, in names and numbers."""


def check_shapes(arrays: Arrays, expected: Shapes, **sizes: int) -> dict[str, int]:
    """Return sizes by name; `expected` lists each array's shape in names and numbers: `{"w": ("d", "arms")}`.

    Raises `PolicyRejected` for the first array that is missing, has another shape, or is not finite.
    """
    if missing := [name for name in expected if name not in arrays]:
        raise PolicyRejected(f"arrays are missing: {', '.join(missing)}")
    for name, spelled in expected.items():
        found = arrays[name].shape
        if len(found) == len(spelled):
            for size, length in zip(spelled, found, strict=True):
                if isinstance(size, str):
                    sizes.setdefault(size, length)
        wanted = tuple(sizes.get(size, 0) if isinstance(size, str) else size for size in spelled)
        if found != wanted:
            raise PolicyRejected(f"array {name} has shape {found}, expected {wanted} ({', '.join(map(str, spelled))})")
        if not np.isfinite(arrays[name]).all():
            raise PolicyRejected(f"array {name} contains values that are not finite")
    return sizes
