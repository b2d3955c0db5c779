"""Reports reach their routers in batches, once each; what cannot is lost, counted, and told."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from draftpick.engines.reporting.report import MAX_BATCH, PATH, OutcomeReport
from draftpick.engines.reporting.reporter import Reporter
from tests.fleet import REFUSING_URL, Servers, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "a secret of some length"


class Inbox:
    """A router's inbox: keeps what comes, and answers `statuses` in turn, then 200."""

    def __init__(self) -> None:
        self.url, self.batches, self.statuses = "", list[dict[str, Any]](), list[int]()
        self.secrets = set[str]()
        self.app = Starlette(routes=[Route(PATH, self.take, methods=["POST"])])

    async def take(self, request: Request) -> Response:
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200:
            self.secrets.add(request.headers["authorization"])
            self.batches.append(orjson.loads(await request.body()))
        return Response(status_code=status)

    @property
    def leases(self) -> list[str]:
        return [report["lease"] for batch in self.batches for report in batch["outcomes"]]

    @property
    def lost(self) -> list[dict[str, int]]:
        return [batch["lost"] for batch in self.batches if batch["lost"]]


@pytest_asyncio.fixture(loop_scope="module")
async def inbox(servers: Servers) -> Inbox:
    made = Inbox()
    made.url = (await servers.serve(made.app)).url
    return made


Make = Callable[..., Reporter]


@pytest_asyncio.fixture(loop_scope="module")
async def reporter() -> AsyncIterator[Make]:
    made: list[Reporter] = []

    def make(**options: Any) -> Reporter:
        made.append(Reporter(SECRET, **{"every_s": 0.01, **options}))
        return made[-1]

    yield make
    for one in made:
        await one.close()


def report(number: int) -> Callable[[], OutcomeReport]:
    return lambda: OutcomeReport(f"{number:032x}", 200)


async def test_reports_come_in_batches_each_once(reporter: Make, inbox: Inbox) -> None:
    sender, most = reporter(), MAX_BATCH + 5
    for number in range(most):
        sender.put(inbox.url, report(number))
    await until(lambda: len(inbox.leases) == most)
    assert inbox.leases == [f"{number:032x}" for number in range(most)]
    assert [len(batch["outcomes"]) for batch in inbox.batches] == [MAX_BATCH, 5]
    assert inbox.secrets == {f"Bearer {SECRET}"}


async def test_a_router_that_is_back_in_time_gets_them(reporter: Make, inbox: Inbox) -> None:
    inbox.statuses = [500, 503]
    sender = reporter()
    sender.put(inbox.url, report(1))
    await until(lambda: inbox.leases == [f"{1:032x}"])
    assert not sender.lost


async def test_what_is_measured_late_is_in_the_report(reporter: Make, inbox: Inbox) -> None:
    sender, measured = reporter(), dict[str, Any]()
    sender.put(inbox.url, lambda: OutcomeReport(f"{1:032x}", 200, **measured))
    measured["usage"] = {"prompt_tokens": 1, "completion_tokens": 2}
    await until(lambda: bool(inbox.batches))
    assert inbox.batches[0]["outcomes"][0]["usage"] == measured["usage"]


async def test_a_full_queue_and_a_silent_router_lose_reports_which_is_told(reporter: Make, inbox: Inbox) -> None:
    sender = reporter(max_queued=3, max_age_s=0.2)
    for number in range(5):
        sender.put(REFUSING_URL, report(number))
    sender.put(inbox.url, report(9))
    assert sender.lost == {"full": 3}
    await until(lambda: sender.lost == {"full": 3, "old": 3})
    sender.put(inbox.url, report(10))
    await until(lambda: bool(inbox.batches))
    assert inbox.leases == [f"{10:032x}"]
    assert inbox.lost == [{"full": 1}]


async def test_a_router_that_refuses_them_is_not_asked_again(reporter: Make, inbox: Inbox) -> None:
    inbox.statuses = [401]
    sender = reporter()
    sender.put(inbox.url, report(1))
    await until(lambda: sender.lost == {"refused": 1})
    sender.put(inbox.url, report(2))
    await until(lambda: bool(inbox.batches))
    assert inbox.leases == [f"{2:032x}"]
    assert inbox.lost == [{"refused": 1}]


async def test_what_is_no_json_is_lost_and_stops_nothing(reporter: Make, inbox: Inbox) -> None:
    sender = reporter()
    sender.put(inbox.url, lambda: OutcomeReport(f"{1:032x}", metrics={"x": object()}))
    await until(lambda: sender.lost == {"refused": 1})
    sender.put(inbox.url, report(2))
    await until(lambda: inbox.leases == [f"{2:032x}"])


async def test_reports_that_wait_at_the_end_are_dropped(reporter: Make, inbox: Inbox) -> None:
    sender = reporter(every_s=10.0)
    sender.put(inbox.url, report(1))
    await sender.close()
    await asyncio.sleep(0)
    assert not inbox.batches
