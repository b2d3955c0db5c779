"""Whether what operators are given works: `python -m tests.bench.operations --json-file FILE` (15 minutes).

A real Prometheus scrapes two routers on Ray Serve over mock engines, to which the faults of the chaos run are done one
after another; its rules are those that ship, thirty times as fast (`tests/load/chaos_alerts.py`). Of the (fault, alert)
pairs that are due, `alerts_expected`, so many fired: `alerts_expected_fired`; others: `alerts_unexpected`. Then it
scrapes real engines, plain and suffix, under the policy that ships. Every query of the dashboard is drawn over both
runs: `dashboard_queries_with_data` in one of them; the others are empty by what `stated_empty` says
(`dashboard_queries_stated_empty`) or not (`dashboard_queries_empty`). `vllm_queries_with_data` of `vllm_queries`: those
for vLLM's own series, over the real engines alone. `alerts_with_series` of `alerts` find all series that they ask for.

`manifests_valid` of `manifests`: what Kubernetes, Ray Serve, Helm, Compose, Prometheus, hadolint and our own
configuration take, of all that ships. `--only PART` measures one part (manifests, monitoring, tutorial) and replaces
its figures in FILE; `image_*` are written by `python -m tests.bench.image`.
"""

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml

from draftpick.deploy.config import FLEETS, resolve, with_engines
from draftpick.deploy.console import out, progress_bar
from draftpick.deploy.generate.manifests import example
from draftpick.deploy.launch.ports import free_port
from draftpick.deploy.launch.ray_serve import running
from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.deploy.workflows.results import merge_into, write
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.workloads import generate
from tests.bench.figures import show
from tests.deploy import kube, test_assets, test_examples, test_helm, test_monitoring
from tests.deploy.prometheus import Prometheus, dashboard_queries, hurried, prometheus, rules, why_empty
from tests.load.chaos import suffering
from tests.load.chaos_alerts import CALM, FASTER, Raised, watched
from tests.load.clients import Clients
from tests.load.faults import Chaos, small_disk

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "tests" / "deploy" / "test_tutorial.py"
REAL = ["plain", "suffix"]
_WINDOW = "10s"
_SECONDS_A_FAULT = 42.0
_REQUESTS = 24
Found = tuple[dict[str, float], dict[str, Any]]
"""Figures, and what else the result holds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--only", choices=sorted(PARTS))
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    figures: dict[str, float] = {}
    more: dict[str, Any] = {}
    for name, part in PARTS.items():
        if args.only in (None, name):
            out.print(f"[bold]{name}[/bold]")
            with tempfile.TemporaryDirectory(prefix="draftpick-operations-") as folder:
                found, told = part(Path(folder), args.clients)
            figures, more = figures | found, more | told
    shown = {name: Interval(value, value, value) for name, value in figures.items()}
    show(shown)
    out.print(more, highlight=False)
    if args.json_file and args.only and args.json_file.exists():
        merge_into(args.json_file, shown, **more)
    elif args.json_file:
        write(args.json_file, len(dashboard_queries()), shown, **more)


# --- what Prometheus sees ---


def monitoring(scratch: Path, clients: int) -> Found:
    """Dashboard and alerts, while everything is killed, hung and cut; the dashboard over real engines."""
    for name in ("ill", "real"):
        (scratch / name).mkdir()
    raised, ill = _chaos(scratch / "ill", clients)
    real = _engines(scratch / "real")
    empty = [place for place in dashboard_queries() if place in ill.empty and place in real.empty]
    unstated = [place for place in empty if why_empty(place) is None]
    due = sum(len(one.due.must) for one in raised)
    unknown = {metric for metric in _of_alerts() if metric in ill.unknown and metric in real.unknown}
    of_vllm = [place for place, query in dashboard_queries().items() if "vllm:" in query]
    figures: dict[str, float] = {
        "dashboard_queries": len(dashboard_queries()),
        "dashboard_queries_with_data": len(dashboard_queries()) - len(empty),
        "dashboard_queries_stated_empty": len(empty) - len(unstated),
        "dashboard_queries_empty": len(unstated),
        "vllm_queries": len(of_vllm),
        "vllm_queries_with_data": sum(place not in real.empty for place in of_vllm),
        "alerts": len(rules()),
        "alerts_with_series": sum(unknown.isdisjoint(_metrics(rule["expr"])) for rule in rules()),
        "alerts_expected": due,
        "alerts_expected_fired": due - sum(len(one.missing) for one in raised),
        "alerts_unexpected": sum(len(one.unexpected) for one in raised),
    }
    reasons = {place: why_empty(place) or "not stated" for place in empty}
    alerts = {one.fault or "before": _told(one) for one in raised}
    return figures, {"monitoring": {"alerts_by_fault": alerts, "stated_empty": reasons}}


@dataclass(frozen=True, slots=True)
class Seen:
    """Queries of the dashboard that showed nothing all the time, and metrics of alerts that were never there."""

    empty: frozenset[str]
    unknown: frozenset[str]


async def _seen(server: Prometheus, began: float) -> Seen:
    """What Prometheus has from `began` until now. Fails where it refuses a query."""

    async def nothing(query: str) -> bool:
        return not await server.over(query, began, time.time())

    for rule in rules():
        await server.now(rule["expr"])
    return Seen(
        frozenset([place for place, query in dashboard_queries(_WINDOW).items() if await nothing(query)]),
        frozenset([metric for metric in _of_alerts() if await nothing(f"count({metric})")]),
    )


def _of_alerts() -> set[str]:
    return {metric for rule in rules() for metric in _metrics(rule["expr"])}


def _metrics(expression: str) -> set[str]:
    return set(test_monitoring.metrics_in(promql_parser.parse(expression)))


def _chaos(scratch: Path, clients: int) -> tuple[list[Raised], Seen]:
    """What each fault raised, and what was seen meanwhile."""
    faster = scratch / "rules.yaml"
    faster.write_text(yaml.safe_dump(hurried(FASTER)))

    async def run(ill: Chaos, url: str) -> tuple[list[Raised], Seen]:
        faults, asking = [CALM, *ill.mock_faults()], Clients(url, ill.model, clients)
        async with prometheus(url, scratch, faster) as server:
            began = time.time()
            with progress_bar() as bar:
                found = await watched(ill, faults, asking, _SECONDS_A_FAULT * len(faults), server, bar)
            return found, await _seen(server, began)

    with small_disk(scratch / "disk") as disk, suffering(scratch, disk, free_port()) as (ill, url):
        return asyncio.run(run(ill, url))


def _told(one: Raised) -> dict[str, list[str]]:
    """For people: what fired, what of it should not have, and what did not fire and had to."""
    named = {"fired": one.fired, "unexpected": one.unexpected, "missing": one.missing}
    return {word: sorted(" ".join(filter(None, alert)) for alert in alerts) for word, alerts in named.items() if alerts}


def _engines(scratch: Path) -> Seen:
    """What is seen of real engines."""
    fields: dict[str, Any] = yaml.safe_load((FLEETS / "embedded.yaml").read_text())
    fields["router"] |= {"records": {"dir": str(scratch / "records")}}
    config = with_engines(resolve(fields), REAL)
    prepare_models(config)

    async def run(url: str) -> Seen:
        async with prometheus(url, scratch) as server, httpx.AsyncClient(base_url=url, timeout=120) as client:
            began = time.time()
            for prompt, arm in zip(generate(_REQUESTS, seed=5, max_tokens=48), cycle([*REAL, ""]), strict=False):
                messages = [{"role": "user", "content": prompt.text}]
                body = {"model": config.target.name, "messages": messages, "max_tokens": prompt.max_tokens}
                pin = {"x-draftpick-arm": arm} if arm else {}
                (await client.post("/v1/chat/completions", json=body, headers=pin)).raise_for_status()
            await client.post("/v1/chat/completions", content=b"{")
            await asyncio.sleep(3)
            return await _seen(server, began)

    with running(config, port=free_port()) as url:
        return asyncio.run(run(url))


# --- what ships ---


def manifests(scratch: Path, clients: int) -> Found:
    """How much of what ships is valid, by the checks that the tests make."""
    faults = {name: fault for name, check in _checks(scratch).items() if (fault := _fault(check)) is not None}
    for name, fault in faults.items():
        out.print(f"{name}: {fault}", highlight=False)
    total = len(_checks(scratch))
    return {"manifests": total, "manifests_valid": total - len(faults)}, {}


def _checks(scratch: Path) -> dict[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {}
    for number, document in enumerate(test_examples.files()):
        found[f"kubernetes/{number}/{document['kind']}"] = partial(kube.check, document)
    for name in test_examples.NAMES:
        found[f"values/{name}"] = partial(test_helm.test_example_is_accepted, name)
        for kind, document in test_helm.objects(example(name)).items():
            found[f"helm/{name}/{kind}"] = partial(kube.check, document)
    for path in test_assets.SERVE_FILES:
        found[f"serve/{path.stem}"] = partial(test_assets.test_serve_accepts_the_file, path)
        found[f"serve/{path.stem}/fleet"] = partial(test_assets.fleet, path)
    for name in test_assets.DOCKERFILES:
        found[name] = partial(test_assets.test_hadolint_finds_nothing, name)
    for path in sorted(FLEETS.glob("*.yaml")):
        found[f"fleets/{path.stem}"] = partial(resolve, str(path))
    found["compose"] = test_assets.test_compose_takes_the_file
    found["prometheus"] = partial(test_assets.test_prometheus_takes_its_file, scratch)
    found["rules"] = lambda: asyncio.run(test_monitoring.test_promtool_takes_the_rules_also_hurried(scratch))
    found["dashboard"] = lambda: asyncio.run(
        test_monitoring.test_every_panel_says_what_it_shows_and_has_a_place_of_its_own()
    )
    return found


def _fault(check: Callable[[], object]) -> str | None:
    """What a check does not like. A tool that is not installed is one, too: then nothing was checked."""
    try:
        check()
    except (Exception, pytest.skip.Exception) as error:  # a check is any test, which may fail by any error
        return str(error).strip() or type(error).__name__
    return None


def tutorial(scratch: Path, clients: int) -> Found:
    """Whether the test that does what the tutorial says passes, skipping nothing."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", str(TUTORIAL)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    out.print(ended.stdout[-2000:], highlight=False)
    return {"tutorial_passes": float(ended.returncode == 0 and " skipped" not in ended.stdout)}, {}


PARTS: Mapping[str, Callable[[Path, int], Found]] = {
    "manifests": manifests,
    "tutorial": tutorial,
    "monitoring": monitoring,
}


if __name__ == "__main__":
    if shutil.which("prometheus") is None:
        raise SystemExit("error: the real Prometheus is needed: apt-get install prometheus")
    main()
