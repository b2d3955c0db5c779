"""Figures that an engine tells."""

import math
from typing import Any

import pytest

from draftpick.engines.http.json_values import to_count, to_figure
from draftpick.engines.pool import report


@pytest.mark.parametrize("value", [None, True, "7", 7.0, [7], -1, 2**31, 10**400])
def test_what_is_no_number_of_tokens_is_none(value: Any) -> None:
    assert to_count(value) is None


def test_counts_and_figures_are_taken_as_they_are() -> None:
    assert [to_count(value) for value in (0, 7, 2**31 - 1)] == [0, 7, 2**31 - 1]
    assert [to_figure(value) for value in (0, 7, 0.5)] == [0.0, 7.0, 0.5]
    assert [to_figure(value, 1.0, 2.0) for value in (0.9, 1, 2, 2.1)] == [None, 1.0, 2.0, None]


@pytest.mark.parametrize("value", [None, True, "7", [7], -0.1, math.nan, math.inf, 1e300, 10**400])
def test_what_is_no_measure_is_none(value: Any) -> None:
    assert to_figure(value) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 2**31},
        {"scored": -1},
        {"drafted": True},
        {"tau": 0.5},
        {"tau": math.nan},
        {"tau": 1e308},
        {"tau": 10**400},
    ],
)
def test_a_drafter_whose_report_cannot_be_has_none(fields: dict[str, Any]) -> None:
    good = {"steps": 12, "drafted": 40, "accepted": 21, "scored": 30, "tau": 1.62}
    assert list(report.parse({"good": good, "odd": good | fields, "none": 5})) == ["good"]
