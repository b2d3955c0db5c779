"""What is killed with -9 in the middle of a retraining or of a swap leaves one whole policy that serves."""

import asyncio
import itertools
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import pytest

from draftpick.deploy.config import resolve
from draftpick.deploy.launch.standalone import RouterProcesses
from draftpick.engines.http.server import LocalServer
from draftpick.engines.mock.app import mock_app
from draftpick.policy_training.retraining.pipeline import retrain
from draftpick.router.policies import artifact, read
from draftpick.router.registry.registry import Registry
from tests.fleet import CHAT, FAST, MODEL, asked, router_pids
from tests.policy_training.retraining.test_pipeline import PLAN, log

pytestmark = [pytest.mark.load, pytest.mark.timeout(180)]


def _retrain_for_ever(folder: Path, ready: Connection) -> None:
    records, registry = log(range(1200), shadows=6), Registry(folder)
    ready.send("begun")
    for seed in itertools.count():
        retrain(records, (), registry, PLAN)
        for id in (registry.state().previous, registry.state().active):
            if id is not None and seed:
                registry.pin(id, "test")
                registry.unpin("test")


def test_a_retraining_that_is_killed_leaves_a_whole_active_policy(tmp_path: Path) -> None:
    context, rng = multiprocessing.get_context("forkserver"), random.Random(0)
    context.set_forkserver_preload([__name__])  # imported once, not by each that is killed
    registry = Registry(tmp_path)
    retrain(log(range(2400)), (), registry, PLAN)
    registry.promote(registry.add(registry.folder("p0001"), {}, "test"), "test")
    for kill in itertools.count():
        if kill >= 6 and (registry.state().revision > 4 or kill == 30):  # on a busy machine nothing was done before
            break
        ours, theirs = context.Pipe()
        process = context.Process(target=_retrain_for_ever, args=(tmp_path, theirs))
        process.start()
        assert ours.recv() == "begun"
        time.sleep(rng.uniform(0.0, 2.0 + kill / 3))
        process.kill()
        process.join()
        state = registry.state()
        assert read(registry.active_folder()).id == state.policies[str(state.active)].policy
    assert registry.state().revision > 4


async def test_a_router_that_is_killed_while_policies_are_swapped_serves_a_whole_one_again(tmp_path: Path) -> None:
    engine = LocalServer(mock_app(FAST, model=MODEL, engine="plain"))
    await engine.start()
    registry, arms = Registry(tmp_path / "registry"), ("plain", "ngram")
    for arm in arms:
        manifest = {"kind": "fixed", "arms": list(arms), "featurizer": "", "options": {"arm": arm}}
        artifact.write(tmp_path / arm, manifest, {})
    ids = [registry.add(tmp_path / arm, {}, "test") for arm in arms]
    registry.promote(ids[0], "test")
    seen: set[str] = set()
    router = {"policy": str(registry.path), "default_engine": "plain", "featurizer": "none"}
    fleet = [{"name": arm, "url": engine.url} for arm in arms]
    routers = RouterProcesses(
        resolve({"target": {"name": MODEL}, "engines": fleet, "router": router}), "127.0.0.1", 0, 1
    )
    loop_ends = time.monotonic() + 14.0
    killed, answered = 0, 0
    watching = asyncio.get_running_loop().run_in_executor(None, routers.supervise)
    try:
        await asyncio.to_thread(routers.wait)
        async with httpx.AsyncClient(base_url=routers.url, timeout=20) as client:
            for turn in itertools.count():
                if turn % 4 == 0:
                    registry.pin(ids[turn // 4 % 2], "test")
                    registry.unpin("test")
                    await asyncio.sleep(0.1)
                if turn % 40 == 20:
                    os.kill(router_pids()[0], signal.SIGKILL)
                    killed += 1
                    await asyncio.sleep(6.0)
                try:
                    answer = await client.post(CHAT, json=asked())
                    assert answer.status_code == 200
                    seen.add(answer.headers["x-draftpick-policy"])
                    answered += 1
                except httpx.TransportError:
                    await asyncio.sleep(0.2)
                if time.monotonic() > loop_ends:
                    break
    finally:
        routers.request_stop()
        await watching
        await asyncio.to_thread(routers.stop)
        await engine.drain(0.1)
    assert killed >= 1
    assert answered > 20
    assert seen == {"fixed:plain", "fixed:ngram"}
