"""The router alone, in processes of its own, in front of engines that run already."""

import asyncio
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from draftpick.deploy.launch.standalone import RouterProcesses
from draftpick.engines.errors import ConfigError
from draftpick.router.config.router_config import load_config
from tests.fleet import CHAT, FAST, SLOW, Servers, asked, router_pids, until


def config(url: str, **router: Any) -> Any:
    engines = [{"name": name, "url": url} for name in ("plain", "other")]
    settings = {"policy": "uniform", "default_engine": "plain", **router}
    return load_config({"target": {"name": "mock-model"}, "engines": engines, "router": settings})


@contextmanager
def routers(url: str, processes: int = 2, **router: Any) -> Iterator[RouterProcesses]:
    made = RouterProcesses(config(url, **router), "127.0.0.1", 0, processes)
    watching = threading.Thread(target=made.supervise)
    try:
        made.wait()
        watching.start()
        yield made
    finally:
        made.request_stop()
        watching.join()
        made.stop()


async def test_several_processes_answer_on_one_port_and_finish_what_they_began() -> None:
    servers = Servers()
    slow = (await servers.mock(SLOW.model_copy(update={"output_tokens": 60}))).url
    with routers(slow) as made:
        assert len(set(router_pids())) == 2
        async with httpx.AsyncClient(base_url=made.url, timeout=30) as client:
            answer = await client.post(CHAT, json=asked(max_tokens=2))
            assert answer.status_code == 200
            assert answer.headers["x-draftpick-arm"] in ("plain", "other")
            async with client.stream("POST", CHAT, json=asked(stream=True)) as stream:
                lines = stream.aiter_lines()
                await anext(lines)
                threading.Thread(target=made.stop).start()
                assert [line async for line in lines if line][-1] == "data: [DONE]"
    await servers.drain()


async def test_a_process_that_is_killed_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftpick.deploy.launch.standalone._MIN_LIFE_S", 0.1)
    servers = Servers()
    engine = (await servers.mock(FAST)).url
    with routers(engine, 1) as made:
        (first,) = router_pids()
        os.kill(first, signal.SIGKILL)
        await until(lambda: router_pids() not in ([], [first]), timeout_s=30)
        async with httpx.AsyncClient(base_url=made.url, timeout=30) as client:
            assert (await client.post(CHAT, json=asked())).status_code == 200
    await servers.drain()


async def test_every_router_shows_the_counts_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftpick.deploy.launch.standalone._MIN_LIFE_S", 0.1)
    servers = Servers()
    engine = (await servers.mock(FAST)).url
    with routers(engine) as made:
        for _ in range(20):  # each on a connection of its own, which one or the other takes
            async with httpx.AsyncClient(base_url=made.url, timeout=30) as client:
                assert (await client.post(CHAT, json=asked())).status_code == 200
        for _ in range(6):
            answered = await counted(made.url)
            assert answered.keys() == {"0", "1"}
            assert sum(answered.values()) == 20
        os.kill(router_pids()[0], signal.SIGKILL)
        for _ in range(300):
            if (await counted(made.url)).get("0") == 0:
                break
            await asyncio.sleep(0.1)
        assert await counted(made.url) == {"0": 0, "1": answered["1"]}  # its successor begins anew, under its name
    await servers.drain()


async def test_lines_of_json_go_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    servers = Servers()
    engine = (await servers.mock(FAST)).url
    with routers(engine, 1, logs={"format": "json", "access_log": True}) as made:
        async with httpx.AsyncClient(base_url=made.url, timeout=30) as client:
            assert (await client.post(CHAT, json=asked(), headers={"x-request-id": "one"})).status_code == 200
    await servers.drain()
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [(line["draftpick_request_id"], line["status"]) for line in lines] == [("one", "ok")]


async def counted(url: str) -> dict[str, float]:
    """Answered requests by router, as a scrape shows them."""
    found: dict[str, float] = {}
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        try:
            page = (await client.get("/metrics")).text
        except httpx.TransportError:  # who took the connection has just been killed
            return {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == "draftpick_requests_total" and sample.labels["status"] == "ok":
                found[sample.labels["router"]] = found.get(sample.labels["router"], 0) + sample.value
    return found


def test_engines_that_would_have_to_be_started_are_refused() -> None:
    fleet = {"target": {"name": "m"}, "engines": [{"name": "plain", "kind": "mock"}]}
    with pytest.raises(ConfigError, match="plain would have to be started"):
        RouterProcesses(load_config({**fleet, "router": {"default_engine": "plain"}}), "127.0.0.1", 0, 1)


async def test_a_port_in_use_is_reported_immediately() -> None:
    servers = Servers()
    url = (await servers.mock(FAST)).url
    with pytest.raises(ConfigError, match="port: cannot listen on"):
        RouterProcesses(config(url), "127.0.0.1", int(url.rsplit(":", 1)[1]), 1)
    await servers.drain()
