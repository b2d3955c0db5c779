"""Short slices of the load programs, so that they cannot rot."""

import pytest

from tests.load.fuzz import run_fuzz

pytestmark = pytest.mark.load


def test_a_slice_of_the_fuzzing() -> None:
    fuzz = run_fuzz(400, seed=1)
    assert fuzz.counts["cases"] > 300
    assert fuzz.faults == []
    assert fuzz.counts["unrecorded_attempts"] == 0
