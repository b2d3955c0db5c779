"""Dashboard and alerts: every query asks for what a live router's page has; alerts fire when they should."""

import asyncio
import importlib.util
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import pytest_asyncio
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from draftpick.deploy.generate import dashboard, metrics_page
from draftpick.router.config.router_config import load_config
from draftpick.router.router import Router, fixed_address
from tests.deploy.prometheus import (
    MAY_BE_EMPTY,
    RULES,
    all_queries,
    dashboard_queries,
    hurried,
    prometheus,
    rules,
    spans,
    why_empty,
)
from tests.deploy.test_assets import tool
from tests.fleet import CHAT, FAILS, FAST, MODEL, Servers, asked

pytestmark = pytest.mark.asyncio(loop_scope="module")

_OF_PROMETHEUS = {"job", "instance"}
DRAFTS = FAST.model_copy(update={"num_speculative_tokens": 4, "acceptance_length": 2.5})


def nodes(expression: Any) -> list[Any]:
    """All parts of an expression, itself first."""
    found: list[Any] = []

    def keep(node: Any) -> bool:
        found.append(node)
        return True

    promql_parser.walk(expression, keep)
    return found


def metrics_in(expression: Any) -> list[str]:
    """The metrics that an expression selects."""
    return [str(node.name) for node in nodes(expression) if isinstance(node, promql_parser.VectorSelector)]


def asked_for(query: str) -> Iterator[tuple[str, str]]:
    """(metric, label) for each label that a query names of a metric: in a selection, a grouping or a matching."""
    for node in nodes(promql_parser.parse(query)):
        if isinstance(node, promql_parser.VectorSelector):
            yield str(node.name), "__name__"
            yield from ((str(node.name), matcher.name) for matcher in node.matchers.matchers)
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            yield from itertools.product(metrics_in(node), node.modifier.labels)
        elif isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None and node.modifier.matching:
            yield from itertools.product(metrics_in(node.lhs), node.modifier.matching.labels)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A router that has answered, refused and failed."""
    specs = {"plain": FAST, "drafts": DRAFTS, "fails": FAILS}
    engines = {arm: (await servers.mock(spec, arm)).url for arm, spec in specs.items()}
    router_config = {"default_engine": "plain", "policy": "uniform", "exploration": {"rate": 0.1}}
    router_config["records"] = {"dir": str(tmp_path_factory.mktemp("records"))}
    listed = [{"name": arm, "url": engine} for arm, engine in engines.items()]
    config = load_config({"target": {"name": MODEL}, "engines": listed, "router": router_config})
    router = Router(config, {arm: fixed_address(engine) for arm, engine in engines.items()})
    router.autoscaler.targets = dict.fromkeys(engines, 1)
    server = await servers.serve(router.app)
    await router.start()
    await ask(server.url, 20)
    yield server.url
    await router.stop()


async def ask(url: str, n: int) -> None:
    """Requests of several kinds."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        for i in range(n):
            await client.post(CHAT, json=asked(stream=bool(i % 2), max_tokens=16))
        await client.post(CHAT, content=b"{")


async def labels(url: str) -> dict[str, set[str]]:
    """The labels of every metric on a router's page, by the names of its samples."""
    async with httpx.AsyncClient() as client:
        page = (await client.get(f"{url}/metrics")).text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels, _OF_PROMETHEUS, {"__name__"})
    return found


# --- the dashboard ---


async def test_the_dashboard_and_the_table_of_metrics_are_up_to_date() -> None:
    assert dashboard.FILE.read_text() == dashboard.text(), "python -m draftpick.deploy.generate.dashboard"
    assert metrics_page.FILE.read_text() == metrics_page.text(), "python -m draftpick.deploy.generate.metrics_page"
    assert metrics_page.FORMER_NAMES.read_text() == metrics_page.former_names()


async def test_every_panel_says_what_it_shows_and_has_a_place_of_its_own() -> None:
    panels = dashboard.dashboard()["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        if panel["type"] != "row":
            assert len(panel["description"]) > 10
            assert panel["targets"]
        place = panel["gridPos"]
        cells = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
    titles = [panel["title"] for panel in panels]
    assert len(set(titles)) == len(titles)
    assert len({panel["id"] for panel in panels}) == len(panels)


# --- queries ---


async def test_every_query_asks_for_what_the_page_has(url: str) -> None:
    page = await labels(url)
    unknown = {
        (place, metric, label)
        for place, query in all_queries().items()
        for metric, label in asked_for(query)
        if label not in page.get(metric, set())
    }
    assert not unknown


async def test_engines_are_asked_for_what_vllm_counts() -> None:
    """By the names in its source, which is not loaded; mock engines show the same."""
    vllm = importlib.util.find_spec("vllm")
    if vllm is None or vllm.origin is None:
        pytest.skip("vLLM is not installed")
    source = "".join(path.read_text() for path in Path(vllm.origin).parent.glob("v1/**/metrics*/**/*.py"))
    source += (Path(vllm.origin).parent / "v1" / "spec_decode" / "metrics.py").read_text()
    asked = {metric for query in all_queries().values() for metric, _ in asked_for(query) if metric.startswith("vllm:")}
    assert len(asked) > 4
    assert {name for name in asked if f'"{name.removesuffix("_total")}"' not in source} == set()


async def test_prometheus_evaluates_every_query(url: str, tmp_path: Path) -> None:
    async with prometheus(url, tmp_path) as server:
        for _ in range(4):
            await ask(url, 20)
            await asyncio.sleep(1)
        found = {place: await server.now(query) for place, query in dashboard_queries().items()}
        alerts = {rule["alert"]: await server.now(rule["expr"]) for rule in rules()}
    assert [place for place, samples in found.items() if not samples and why_empty(place) is None] == []
    assert not alerts["DraftpickAbsent"]


async def test_only_what_there_is_may_be_empty() -> None:
    places = set(dashboard_queries())
    assert set(MAY_BE_EMPTY) <= places | {place.partition(":")[0] for place in places}


# --- alerts ---


async def test_every_alert_says_what_to_do() -> None:
    for rule in rules():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["alert"].startswith("Draftpick")
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "runbook"}
    assert len({rule["alert"] for rule in rules()}) == len(rules())


async def test_promtool_takes_the_rules_also_hurried(tmp_path: Path) -> None:
    (tmp_path / "hurried.yaml").write_text(yaml.safe_dump(hurried(60)))
    found = subprocess.run(  # noqa: ASYNC221  # milliseconds
        [tool("promtool"), "check", "rules", RULES, metrics_page.FORMER_NAMES, tmp_path / "hurried.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr


async def test_hurried_rules_differ_in_time_alone() -> None:
    made = [rule for group in hurried(60)["groups"] for rule in group["rules"]]
    assert [re.sub(r"\d+ms", "", str(rule)) for rule in made] == [
        re.sub(r"(?<=\[)\d+[mhd](?=\])|(?<=offset )\d+[mhd]|(?<='for': ')\d+m", "", str(rule)) for rule in rules()
    ]
    (fell,) = [rule["expr"] for rule in made if rule["alert"] == "DraftpickAcceptanceFell"]
    assert "[30000ms]" in fell
    assert "[1440000ms] offset 1440000ms" in fell


@given(st.lists(st.integers(0, 40), unique=True))
async def test_spans_hold_the_times_and_no_others(times: list[int]) -> None:
    found = spans([float(t) for t in sorted(times)])
    assert [t for first, last in found for t in range(int(first), int(last) + 1)] == sorted(times)


A = 'job="d",router="0"'
ARM = f'{A},arm="a"'
BUCKETS = (("1.5", 0), ("2.0", 60), ("+Inf", 60))
ILL: dict[str, dict[str, str]] = {
    "DraftpickAbsent": {"up": "1+0x120"},
    "DraftpickNoEngine": {f"draftpick_ready{{{A}}}": "0+0x120"},
    "DraftpickRequestsFail": {
        f'draftpick_requests_total{{{ARM},status="ok"}}': "0+57x120",
        f'draftpick_requests_total{{{ARM},status="broken"}}': "0+3x120",
    },
    "DraftpickRequestsRejected": {
        f"draftpick_queue_rejected_total{{{A}}}": "0+1x120",
        f"draftpick_queue_timeouts_total{{{A}}}": "0+0x120",
    },
    "DraftpickFirstTokenSlow": {
        f'draftpick_ttft_seconds_bucket{{{ARM},le="10.2"}}': "0+0x120",
        f'draftpick_ttft_seconds_bucket{{{ARM},le="20.5"}}': "0+60x120",
        f'draftpick_ttft_seconds_bucket{{{ARM},le="+Inf"}}': "0+60x120",
    },
    "DraftpickEngineFails": {
        f'draftpick_attempts_total{{{ARM},status="ok"}}': "0+50x120",
        f'draftpick_attempts_total{{{ARM},status="timeout"}}': "0+10x120",
        f'draftpick_attempt_faults_total{{{ARM},fault="engine"}}': "0+10x120",
    },
    "DraftpickEngineGone": {f'draftpick_replicas{{{ARM},state="{s}"}}': "0+0x120" for s in ("closed", "open")},
    "DraftpickBreakerOpen": {
        f'draftpick_replicas{{{ARM},state="closed"}}': "1+0x120",
        f'draftpick_replicas{{{ARM},state="open"}}': "1+0x120",
    },
    "DraftpickDraftsLost": {f'draftpick_arm_quarantine_state{{{ARM},state="quarantined"}}': "1+0x120"},
    "DraftpickAcceptanceFell": {
        f"vllm:spec_decode_num_accepted_tokens_total{{{ARM}}}": "0+60x2820 169200+6x120",
        f"vllm:spec_decode_num_draft_tokens_total{{{ARM}}}": "0+120x2940",
    },
    "DraftpickLoadUnknown": {f"draftpick_arm_report_stale{{{ARM}}}": "1+0x120"},
    "DraftpickReplicaMissing": {
        f"draftpick_arm_unmet_demand_ratio{{{ARM}}}": "0.8+0x120",
        f"draftpick_requests_in_flight{{{A}}}": "9+0x120",
    },
    "DraftpickFallsBack": {
        f'draftpick_fallbacks_total{{{A},reason="no_context"}}': "0+6x120",
        f'draftpick_decisions_total{{{ARM},reason="policy"}}': "0+60x120",
    },
    "DraftpickPolicyRejected": {f"draftpick_policy_rejected{{{A}}}": "1+0x120"},
    "DraftpickSafeMode": {f'draftpick_safe_mode{{{A},role="active"}}': "1+0x120"},
    "DraftpickNoSpeedup": {
        f"draftpick_decoding_baseline_seconds_total{{{ARM}}}": "0+50x120",
        f"draftpick_decoding_seconds_total{{{ARM}}}": "0+60x120",
    },
    "DraftpickMispredicts": {
        f'draftpick_tpot_prediction_ratio_bucket{{{ARM},le="{le}"}}': f"0+{n}x120" for le, n in BUCKETS
    },
    "DraftpickRouterStateDivergence": {
        f'draftpick_policy_info{{job="d",router="{i}",policy="p{i}",role="active"}}': "1+0x120" for i in (0, 1)
    },
    "DraftpickRecordsDropped": {f"draftpick_records_dropped_total{{{A}}}": "0+1x120"},
    "DraftpickInternalFailures": {f'draftpick_internal_failures_total{{{A},part="learning"}}': "0+1x120"},
}
"""Series, one value a minute, for two hours or two days, at whose end an alert fires."""
WELL: dict[str, str] = {
    f'draftpick_build_info{{{A},version="1"}}': "1+0x120",
    f"draftpick_ready{{{A}}}": "1+0x120",
    f'draftpick_requests_total{{{ARM},status="ok"}}': "0+60x120",
    f'draftpick_requests_total{{{ARM},status="broken"}}': "0+0x120",
    f'draftpick_attempts_total{{{ARM},status="ok"}}': "0+60x120",
    f'draftpick_attempts_total{{{ARM},status="timeout"}}': "0+1x120",
    f"draftpick_queue_rejected_total{{{A}}}": "5+0x120",
    f"draftpick_queue_timeouts_total{{{A}}}": "0+0x120",
    f'draftpick_ttft_seconds_bucket{{{ARM},le="0.64"}}': "0+60x120",
    f'draftpick_ttft_seconds_bucket{{{ARM},le="+Inf"}}': "0+60x120",
    f'draftpick_replicas{{{ARM},state="closed"}}': "1+0x120",
    f'draftpick_replicas{{{ARM},state="open"}}': "0+0x120",
    f'draftpick_arm_quarantine_state{{{ARM},state="quarantined"}}': "0+0x120",
    f"draftpick_arm_report_stale{{{ARM}}}": "0+0x120",
    f"draftpick_arm_unmet_demand_ratio{{{ARM}}}": "0.2+0x120",
    f"draftpick_requests_in_flight{{{A}}}": "9+0x120",
    f'draftpick_fallbacks_total{{{A},reason="no_context"}}': "3+0x120",
    f'draftpick_decisions_total{{{ARM},reason="policy"}}': "0+60x120",
    f"draftpick_policy_rejected{{{A}}}": "0+0x120",
    f'draftpick_safe_mode{{{A},role="active"}}': "0+0x120",
    f"draftpick_decoding_baseline_seconds_total{{{ARM}}}": "0+75x120",
    f"draftpick_decoding_seconds_total{{{ARM}}}": "0+60x120",
    f'draftpick_tpot_prediction_ratio_bucket{{{ARM},le="0.9"}}': "0+20x120",
    f'draftpick_tpot_prediction_ratio_bucket{{{ARM},le="1.11"}}': "0+40x120",
    f'draftpick_tpot_prediction_ratio_bucket{{{ARM},le="+Inf"}}': "0+60x120",
    f'draftpick_policy_info{{{A},policy="p1",role="active"}}': "1+0x120",
    f'draftpick_policy_info{{{A},policy="p2",role="candidate"}}': "1+0x120",
    f"draftpick_records_dropped_total{{{A}}}": "7+0x120",
    f'draftpick_internal_failures_total{{{A},part="learning"}}': "2+0x120",
}


async def test_each_alert_fires_for_what_is_ill_and_none_for_what_is_well(tmp_path: Path) -> None:
    assert set(ILL) == {rule["alert"] for rule in rules()}
    rules_file = shutil.copy(RULES, tmp_path / "rules.yaml")
    firing = 'count(ALERTS{alertstate="firing"%s})'
    ill = [_case(series, firing % f',alertname="{alert}"', 1) for alert, series in ILL.items()]
    cases = {
        "rule_files": [Path(rules_file).name],
        "evaluation_interval": "5m",
        "tests": [*ill, _case(WELL, firing % "", None)],
    }
    (tmp_path / "tests.yaml").write_text(json.dumps(cases))
    found = subprocess.run(  # noqa: ASYNC221  # a second
        [tool("promtool"), "test", "rules", str(tmp_path / "tests.yaml")], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


def _case(series: dict[str, str], query: str, expected: int | None) -> dict[str, Any]:
    """A test of promtool: whether a query gives `expected` at the end of the series, or nothing."""
    minutes = 2940 if any("x2" in values for values in series.values()) else 120
    samples = [] if expected is None else [{"labels": "{}", "value": expected}]
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": query, "eval_time": f"{minutes}m", "exp_samples": samples}],
    }
