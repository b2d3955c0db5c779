import json

import pytest

from draftpick.engines.pool.forecast import MAX_WEIGHT, Forecast
from draftpick.engines.pool.report import DrafterReport, parse


def test_a_forecast_survives_the_way_to_the_engine() -> None:
    forecast = Forecast({"general": 1.8, "suffix": 1.2}, weight=12, objective="latency", only="general")
    assert Forecast.from_json(forecast.to_json()) == forecast


def test_survival_stands_for_the_acceptance_length() -> None:
    forecast = Forecast.from_json('{"survival": {"math": [0.6, 0.4]}, "tau": {"general": 1.5}}')
    assert forecast is not None
    assert forecast.tau == pytest.approx({"math": 2.0, "general": 1.5})


def test_a_forecast_never_outweighs_what_is_seen() -> None:
    forecast = Forecast.from_json('{"tau": {"math": 3}, "weight": 1e9}')
    assert forecast is not None
    assert forecast.weight == MAX_WEIGHT


@pytest.mark.parametrize(
    "text",
    ["", "[]", "7", "null", "{", '{"tau": {"a": "x"}}', '{"tau": {"a": 0.5}}', '{"tau": {"a": NaN}}', '{"tau": []}',
     '{"weight": -1}', '{"objective": "speed"}', '{"only": 3}', 5, None, ["a"]],
)  # fmt: skip
def test_what_is_no_forecast_is_none(text: object) -> None:
    assert Forecast.from_json(text) is None


def test_a_report_survives_the_way_to_the_router() -> None:
    reports = {"general": DrafterReport(12, 40, 21, 30, 1.62), "none": DrafterReport(8, tau=1.0)}
    sent = json.dumps({name: report.to_fields() for name, report in reports.items()})
    assert parse(json.loads(sent)) == reports


def test_what_is_no_report_is_skipped() -> None:
    fine = {"steps": 1, "drafted": 2, "accepted": 1, "scored": 1, "tau": None}
    wrong = [None, 3, {**fine, "steps": -1}, {**fine, "drafted": 1.5}, {**fine, "tau": 0.4}, {**fine, "tau": "x"}]
    assert parse({"fine": fine, **{str(i): one for i, one in enumerate(wrong)}}).keys() == {"fine"}
    assert parse([fine]) == parse(None) == {}
