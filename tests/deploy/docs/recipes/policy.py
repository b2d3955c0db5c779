"""The policy of docs/extending.md, from an artefact."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from draftpick.router.policies import artifact, read
from draftpick.router.types import Context

ARMS = ("a", "b", "c")
ARRAYS = {
    "mean": np.zeros(3, np.float32),
    "scale": np.ones(3, np.float32),
    "centres": np.eye(3, dtype=np.float32),
}


@given(st.sets(st.sampled_from(range(3)), min_size=1), st.integers(0, 2))
def test_the_eligible_arm_with_the_nearest_centre_is_taken(
    tmp_path_factory: object, eligible: set[int], nearest: int
) -> None:
    folder: Path = tmp_path_factory.getbasetemp() / "nearest"  # type: ignore[attr-defined]
    if not folder.exists():
        artifact.write(folder, {"kind": "nearest", "arms": list(ARMS), "featurizer": "features"}, ARRAYS)
    mask = np.isin(range(3), list(eligible))
    probabilities = read(folder).probabilities(Context(np.eye(3, dtype=np.float32)[nearest], "features"), mask)
    assert probabilities.sum() == 1.0
    assert (probabilities[~mask] == 0).all()
    assert nearest not in eligible or probabilities[nearest] == 1.0
