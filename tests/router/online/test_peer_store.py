"""What replicas leave for each other on a shared disk: whole events, and corrections; damage costs news alone."""

import asyncio
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from draftpick.router.config.router_config import load_config
from draftpick.router.online.events import EVENTS, FORMER_KINDS, Event, decode_events
from draftpick.router.online.peer_store import PeerStore
from draftpick.router.records import read
from draftpick.router.router import Router, fixed_address
from tests.fleet import CHAT, MODEL, Servers, StartMock, asked, until

SUMS = {"weights": [[1.0]], "sums": [[0.5]]}


def event(number: int) -> Event:
    return Event(1.0 + number, "arm_changed", f"text {number} \u2028 é", "plain", "p", {"costs": 0.5})


# --- events ---


def test_lines_of_replicas_that_write_at_once_do_not_mix(tmp_path: Path) -> None:
    def write(replica: int) -> None:
        exchange = PeerStore(tmp_path)
        for number in range(40):
            exchange.write_events([event(1000 * replica + 2 * number), event(1000 * replica + 2 * number + 1)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    found = decode_events((tmp_path / EVENTS).read_bytes())
    assert sorted(one.time for one in found) == sorted(event(1000 * r + n).time for r in range(8) for n in range(80))
    assert {one.text for one in found} == {event(1000 * r + n).text for r in range(8) for n in range(80)}


@pytest.mark.parametrize(("old", "new"), FORMER_KINDS.items())
def test_a_line_of_an_earlier_version_has_the_kind_of_today(old: str, new: str) -> None:
    line = f'{{"time": 9.0, "kind": "{old}", "text": "it loses 7%", "arm": null, "policy": "p", "figures": {{}}}}\n'
    assert decode_events(line.encode()) == [Event(9.0, new, "it loses 7%", policy="p")]


@pytest.mark.parametrize(
    "damage", ['{"time": 9', "{}", "[]", '{"time": 9, "kind": "x", "text": "", "later": 1}', "\x00"]
)
def test_a_damaged_line_costs_itself_alone(tmp_path: Path, damage: str) -> None:
    exchange = PeerStore(tmp_path)
    exchange.write_events([event(0)])
    with (tmp_path / EVENTS).open("a") as file:
        file.write(damage + "\n")
    exchange.write_events([event(1)])
    assert decode_events((tmp_path / EVENTS).read_bytes()) == [event(0), event(1)]
    assert decode_events((tmp_path / EVENTS).read_bytes(), since=1.5) == [event(1)]


def test_a_disk_that_takes_half_of_them_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[: len(data) // 2]))
    with pytest.raises(OSError, match="disk"):
        PeerStore(tmp_path).write_events([event(0)])


# --- corrections ---


def leave(folder: Path, text: str, age_s: float = 0.0) -> Path:
    """What another router left so long ago."""
    path = folder / "corrections-elsewhere-1-ab.json"
    path.write_text(text)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_what_is_stale_is_passed_over_and_taken_away(tmp_path: Path) -> None:
    path = leave(tmp_path, json.dumps({"p": SUMS}), age_s=61)
    assert PeerStore(tmp_path).sync({"p": SUMS}) == {"p": []}
    assert not path.exists()


def test_what_is_fresh_is_taken(tmp_path: Path) -> None:
    leave(tmp_path, json.dumps({"p": SUMS, "q": SUMS}), age_s=50)
    assert PeerStore(tmp_path).sync({"p": SUMS}) == {"p": [SUMS]}


@pytest.mark.parametrize("text", ["", "{", "[]", '"p"', '{"q": 1}'])
def test_a_damaged_file_costs_nothing_of_the_others(tmp_path: Path, text: str) -> None:
    leave(tmp_path, text)
    other, one = PeerStore(tmp_path), PeerStore(tmp_path)
    other.sync({"p": SUMS})
    assert one.sync({"p": {}}) == {"p": [SUMS]}


def test_a_file_that_goes_away_meanwhile_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "corrections-gone-1-ab.json").symlink_to(tmp_path / "nowhere")
    assert PeerStore(tmp_path).sync({"p": SUMS}) == {"p": []}


def test_nothing_but_ones_own_file_is_left_behind(tmp_path: Path) -> None:
    exchange = PeerStore(tmp_path)
    for _ in range(3):
        exchange.sync({"p": SUMS})
    assert len(list(tmp_path.iterdir())) == 1
    exchange.withdraw()
    exchange.withdraw()
    assert list(tmp_path.iterdir()) == []


# --- through a router ---


async def started(folder: Path, url: str, **online: Any) -> Router:
    """A router whose news lie in `folder / "online"`, and its records in `folder`."""
    router = {
        "default_engine": "a",
        "records": {"dir": str(folder)},
        "online": {"dir": str(folder / "online"), "correction": {"enabled": True}, **online},
    }
    config = load_config({"target": {"name": MODEL}, "engines": [{"name": "a", "url": url}], "router": router})
    made = Router(config, {"a": fixed_address(url)})
    await made.start()
    return made


@pytest.mark.asyncio(loop_scope="module")
class TestRouter:
    """Once a second it writes its events, and swaps its corrections."""

    @pytest.fixture(autouse=True)
    def hurried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("draftpick.router.online.peer_sync._EVERY_S", 0.02)

    @pytest.mark.parametrize("text", ["[]", '{"fixed:a": []}', '{"fixed:a": {"weights": 1}}', "{"])
    async def test_what_others_leave_never_ends_its_news(
        self, mock_engine: StartMock, tmp_path: Path, text: str
    ) -> None:
        (tmp_path / "online").mkdir()
        leave(tmp_path / "online", text)
        router = await started(tmp_path, (await mock_engine()).url)
        await asyncio.sleep(0.1)
        router.parts.events.emit(event(1))
        file = tmp_path / "online" / EVENTS
        await until(lambda: file.is_file() and decode_events(file.read_bytes()) == [event(1)])
        await router.stop()

    async def test_it_stops_with_its_records_written_where_news_cannot_be(
        self, servers: Servers, mock_engine: StartMock, tmp_path: Path
    ) -> None:
        (tmp_path / "online").write_text("no folder")
        router = await started(tmp_path, (await mock_engine()).url)
        async with httpx.AsyncClient(base_url=(await servers.serve(router.app)).url) as client:
            assert (await client.post(CHAT, json=asked())).status_code == 200
        router.parts.events.emit(event(1))
        await router.stop()
        assert router.parts.metrics.failures["events", "FileExistsError"] == 1
        assert [record.outcome.status for record in read(tmp_path)] == ["ok"]

    async def test_two_routers_learn_from_each_other_and_take_their_news_away(
        self, mock_engine: StartMock, tmp_path: Path
    ) -> None:
        url = (await mock_engine()).url
        one, other = await started(tmp_path, url), await started(tmp_path, url)
        ((_, mine),), ((_, theirs),) = one.parts.active_policies.learners(), other.parts.active_policies.learners()
        for _ in range(20):
            mine.correction.update(0, 0, 0.5)
        await until(lambda: theirs.correction.weight(0, 0) == mine.correction.weight(0, 0) > 0)
        assert theirs.correction.residuals() == pytest.approx(mine.correction.residuals())
        await one.stop()
        await until(lambda: theirs.correction.weight(0, 0) == 0)
        await other.stop()
        assert list((tmp_path / "online").glob("corrections-*")) == []
