"""What a router logs: lines of text or JSON, each with the request that it belongs to."""

import io
import json
import logging
import queue
from collections.abc import Iterator
from contextlib import redirect_stderr
from logging.handlers import QueueHandler
from typing import Any

import pytest

from draftpick.router.config.sections import LogsConfig
from draftpick.router.policies.baselines import FixedPolicy
from draftpick.router.telemetry import logging as logs
from draftpick.router.telemetry.logging import JsonLines, TextLines
from tests.fleet import BREAKS, FAILS, FAST, REFUSING_URL, StartRouter, until
from tests.router.request.test_dispatcher import Raising

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the loggers of a router write, as a process without Ray has it, in JSON."""
    root, ours = logging.getLogger(), logging.getLogger("draftpick")
    before = root.handlers.copy()
    stream = io.StringIO()
    with redirect_stderr(stream):
        logs.configure(LogsConfig(format="json"))
    yield stream
    root.handlers, ours.handlers, ours.propagate = before, [], True
    ours.setLevel(logging.NOTSET)


def lines(written: io.StringIO) -> list[dict[str, Any]]:
    """What the router said; its engines' servers are in the same process."""
    found = [json.loads(line) for line in written.getvalue().splitlines()]
    return [line for line in found if line["logger"].startswith("draftpick.")]


async def test_every_finished_request_leaves_one_line(router_app: StartRouter, written: io.StringIO) -> None:
    app = await router_app({"a": FAILS, "b": FAST}, logs={"access_log": True})
    await app.post(max_tokens=8, headers={"x-request-id": "one"})
    await app.post(headers={"x-draftpick-arm": "nobody", "x-request-id": "two"})
    first, second = lines(written)
    assert first["message"] == "request ended"
    assert (first["draftpick_request_id"], first["arm"], first["status"], first["attempts"]) == ("one", "b", "ok", 2)
    assert (first["output_tokens"], first["http_status"], first["path"]) == (8, 200, "/v1/chat/completions")
    assert 0 < first["overhead_s"] <= first["ttft_s"] <= first["e2e_s"]
    assert (second["draftpick_request_id"], second["error_type"]) == ("two", "BadRequest")


async def test_however_a_request_ends(router_app: StartRouter, written: io.StringIO) -> None:
    app = await router_app({"a": BREAKS, "b": REFUSING_URL}, logs={"access_log": True}, wait_for_engine_s=0)
    await app.post(stream=True)
    await app.post(headers={"x-draftpick-arm": "b"})
    await until(lambda: len(lines(written)) == 2)
    assert [(line["status"], line.get("error_type")) for line in lines(written)] == [
        ("broken", None),
        ("engine_error", "EngineFailed"),
    ]


async def test_by_default_a_request_leaves_none(router_app: StartRouter, written: io.StringIO) -> None:
    app = await router_app({"a": FAST})
    assert (await app.post()).status_code == 200
    assert lines(written) == []


async def test_what_fails_under_way_says_of_which_request(router_app: StartRouter, written: io.StringIO) -> None:
    app = await router_app({"a": FAST, "b": FAST}, policy=Raising())
    assert (await app.post(headers={"x-request-id": "one"})).status_code == 200
    (line,) = lines(written)
    assert (line["level"], line["draftpick_request_id"]) == ("ERROR", "one")
    assert "ZeroDivisionError" in line["error"]


async def test_events_are_logged_with_what_they_are_about(router_app: StartRouter, written: io.StringIO) -> None:
    app = await router_app({"a": FAST}, policy=FixedPolicy(("a",), "a"))
    app.parts.active_policies.emit_for_arm("arm_quarantined", "engine a is lost", "a")
    (line,) = lines(written)
    assert (line["event"], line["arm"], line["policy"], line["level"]) == ("arm_quarantined", "a", "fixed:a", "ERROR")
    assert line["message"] == "engine a is lost"


async def test_a_line_of_text_and_one_of_json_say_the_same() -> None:
    record = logging.makeLogRecord({"name": "draftpick.x", "levelname": "INFO", "msg": "so %s", "args": ("it is",)})
    record.arm, record.ttft_s = "a", 0.5
    line = json.loads(JsonLines().format(record))
    assert TextLines().format(record).endswith("INFO draftpick.x so it is arm=a ttft_s=0.5")
    assert {name: line[name] for name in ("logger", "level", "message", "arm", "ttft_s")} == {
        "logger": "draftpick.x",
        "level": "INFO",
        "message": "so it is",
        "arm": "a",
        "ttft_s": 0.5,
    }
    assert line["time"].endswith("+00:00")


async def test_serve_writes_what_the_router_says(written: io.StringIO) -> None:
    """By whatever handlers Serve has at the time."""
    serve = logging.getLogger("ray.serve")
    logs.configure_in_serve()
    kept, before = QueueHandler(queue.SimpleQueue()), (serve.handlers, serve.level)
    serve.handlers = [kept]
    serve.setLevel(logging.WARNING)
    logging.getLogger("draftpick.router").info("all is well")
    logs.REQUEST_ID.set("one")
    logging.getLogger("draftpick.router").error("something is wrong")
    logs.REQUEST_ID.set(None)
    serve.handlers = before[0]
    serve.setLevel(before[1])
    record = kept.queue.get()
    assert (record.getMessage(), vars(record)["draftpick_request_id"]) == ("something is wrong", "one")
