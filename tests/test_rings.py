"""No file that holds a selected test is left out."""

import pytest

from tests.rings import may_select

UNIT, RAY, VLLM = "not ray and not vllm and not load", "(ray or load) and not vllm", "vllm"
SOME_VLLM = "import pytest\n\n\n@pytest.mark.vllm\ndef test_a() -> None: ...\n"
ALL_RAY = "import pytest\n\npytestmark = pytest.mark.ray\n"
BOTH = "pytestmark = [\n    pytest.mark.vllm,\n    pytest.mark.ray,\n]\n\n\ndef test_a() -> None: ...\n"
RAY_OR_BOTH = ALL_RAY + SOME_VLLM


@pytest.mark.parametrize(
    ("source", "selecting"),
    [
        ("def test_a() -> None: ...", {UNIT}),
        (SOME_VLLM, {UNIT, VLLM}),
        (ALL_RAY, {RAY}),
        (BOTH, {VLLM}),
        (RAY_OR_BOTH, {RAY, VLLM}),
    ],
)
def test_a_file_is_read_by_the_rings_that_may_select_a_test_of_it(source: str, selecting: set[str]) -> None:
    assert {ring for ring in (UNIT, RAY, VLLM) if may_select(ring, source)} == selecting


def test_other_names_may_select_anything() -> None:
    assert may_select("slow and not vllm", BOTH)
