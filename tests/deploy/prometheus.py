"""Prometheus, the real server, over a running router; what dashboard and rules ask it, and what may be empty."""

import asyncio
import contextlib
import re
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from draftpick.deploy.generate import dashboard
from draftpick.deploy.launch.ports import free_port
from tests.deploy.test_assets import PROMETHEUS, tool

RULES = PROMETHEUS / "rules" / "draftpick.yaml"
MAY_BE_EMPTY: Mapping[str, str] = {
    "Ejected replicas": "every breaker is closed",
    "Lost drafters": "no engine is in quarantine",
    "Failed attempts": "no attempt failed",
    "Internal failures": "every engine reports its load",
    "Breakers": "no breaker opened",
    "Unmet demand": "no policy here predicts times, so there is no unmet demand",
    "Replicas: {{arm}} wanted": "no engine is scaled here",
    "annotation": "no event happened",
}
"""Panels, or single queries of them, without a sample where all is well, and why."""
_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(?<=\[)\d+[smhd](?=\])|(?<=offset )\d+[smhd]\b")
_START_S = 20.0


def rules() -> list[dict[str, Any]]:
    """The alerting rules."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = [rule for group in groups for rule in group["rules"]]
    return found


def all_queries(window: str = "5s") -> dict[str, str]:
    """Queries of dashboard and rules, with values in the place of the dashboard's variables."""
    return {**dashboard_queries(window), **{rule["alert"]: rule["expr"] for rule in rules()}}


def dashboard_queries(window: str = "5s") -> dict[str, str]:
    """Queries of the dashboard by panel and legend; `window`: the time over which rates are taken."""
    values = {"$__rate_interval": window, "$quantile": "0.95", "$arm": ".*", "$job": ".*"}
    found = dashboard.queries()
    for name, value in values.items():
        found = {place: query.replace(name, value) for place, query in found.items()}
    return found


def why_empty(place: str) -> str | None:
    """Why a query of the dashboard may be empty; None: it may not."""
    return MAY_BE_EMPTY.get(place, MAY_BE_EMPTY.get(place.partition(":")[0]))


def hurried(factor: float) -> dict[str, Any]:
    """The rules with all times divided by `factor`: windows, offsets, and how long a thing must last."""
    whole: dict[str, Any] = yaml.safe_load(RULES.read_text())
    for group in whole["groups"]:
        for rule in group["rules"]:
            rule["expr"] = _DURATION.sub(lambda found: _faster(found[0], factor), rule["expr"])
            rule["for"] = _faster(rule["for"], factor)
    return whole


def _faster(duration: str, factor: float) -> str:
    return f"{round(int(duration[:-1]) * _UNITS_MS[duration[-1]] / factor)}ms"


@dataclass(frozen=True, slots=True)
class Alert:
    """One time that an alert fired: for which engine, if it names one, and when, in seconds since the epoch."""

    name: str
    arm: str
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A server that runs."""

    client: httpx.AsyncClient

    async def now(self, query: str) -> list[Any]:
        """The samples of a query, at this moment. Fails where Prometheus refuses it."""
        return await self._result("/api/v1/query", query=query)

    async def over(self, query: str, began: float, ended: float, step_s: float = 1.0) -> list[Any]:
        """The series of a query, as a panel draws them. Times in seconds since the epoch."""
        return await self._result("/api/v1/query_range", query=query, start=began, end=ended, step=step_s)

    async def fired(self, began: float, ended: float) -> list[Alert]:
        """Each time that an alert fired, the first ones first."""
        series = await self.over('ALERTS{alertstate="firing"}', began, ended)
        found = [
            Alert(one["metric"]["alertname"], one["metric"].get("arm", ""), *span)
            for one in series
            for span in spans([float(at) for at, _ in one["values"]])
        ]
        return sorted(found, key=lambda alert: alert.began)

    async def scraped(self, query: str) -> None:
        """Return when it is ready and a query gives something. Raises TimeoutError."""
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            with contextlib.suppress(httpx.TransportError):
                if (await self.client.get("/-/ready")).status_code == 200 and await self.now(query):
                    return
            await asyncio.sleep(0.1)
        raise TimeoutError("Prometheus has scraped nothing")

    async def _result(self, path: str, **parameters: Any) -> list[Any]:
        answer = (await self.client.get(path, params=parameters)).json()
        assert answer["status"] == "success", (parameters, answer)
        found: list[Any] = answer["data"]["result"]
        return found


def spans(times: list[float], step_s: float = 1.0) -> list[tuple[float, float]]:
    """(first, last) of each run of times that are one step apart."""
    found: list[tuple[float, float]] = []
    for at in times:
        if found and at - found[-1][1] <= 1.5 * step_s:
            found[-1] = found[-1][0], at
        else:
            found.append((at, at))
    return found


@asynccontextmanager
async def prometheus(url: str, folder: Path, rules: Path = RULES) -> AsyncIterator[Prometheus]:
    """A server that scrapes the router at `url` once a second and judges by `rules`; its data lie below `folder`.

    It has scraped once. Skips the test where Prometheus is not installed.
    """
    port, config = free_port(), folder / "prometheus.yml"
    scrape = {"job_name": "draftpick", "static_configs": [{"targets": [url.removeprefix("http://")]}]}
    every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config.write_text(yaml.safe_dump({"global": every, "rule_files": [str(rules)], "scrape_configs": [scrape]}))
    command = [tool("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    process = subprocess.Popen(  # noqa: ASYNC220  # it runs beside the test
        [*command, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            server = Prometheus(client)
            # It judges before it scrapes for the first time: what it missed then must be forgotten.
            await server.scraped('draftpick_build_info unless on() ALERTS{alertname="DraftpickAbsent"}')
            yield server
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 30)
