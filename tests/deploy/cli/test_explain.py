"""`draftpick explain`: what it prints, of what it asks, and what it says when it cannot."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from draftpick.deploy.cli.explain import explained
from draftpick.engines.errors import DraftpickError
from draftpick.engines.http.server import LocalServer
from draftpick.engines.mock.app import mock_app
from draftpick.router.config.router_config import load_config
from draftpick.router.router import Router, fixed_address
from tests.deploy.cli.test_main import draftpick, invoke, words
from tests.fleet import FAST, MODEL, REFUSING_URL
from tests.leaks import PROMPT

ARMS = ("plain", "suffix", "hybrid", "general")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of a router with the policy that ships, over mock engines."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    found: list[str] = []

    async def serve() -> None:
        engine = LocalServer(mock_app(FAST, model=MODEL, engine="x"))
        await engine.start()
        listed = [{"name": arm, "url": engine.url} for arm in ARMS]
        settings = {"policy": "embedded", "default_engine": "plain"}
        router = Router(
            load_config({"engines": listed, "router": settings}), dict.fromkeys(ARMS, fixed_address(engine.url))
        )
        await router.start()
        server = LocalServer(router.app)
        await server.start()
        found.append(server.url)
        ready.set()
        await stop.wait()
        await asyncio.gather(server.drain(0.1), engine.drain(0.1))
        await router.stop()

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(60)
    yield found[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(30)
    loop.close()


def test_the_sentence_and_a_row_for_every_engine(url: str) -> None:
    result = invoke("explain", "What is 12 * 7?", "--url", url)
    assert result.exit_code == 0, result.output
    shown = words(result.stdout)
    assert "is expected to take" in shown or "keeps it" in shown
    assert all(arm in shown for arm in ARMS)
    assert "tokens expected" in shown
    assert "kind: " in shown


def test_json_is_what_the_router_says(url: str) -> None:
    result = invoke("explain", PROMPT, "--url", url, "--json", "--temperature", "0.7", "--max-tokens", "9")
    told = json.loads(result.stdout)
    assert PROMPT not in result.stdout
    assert {row["arm"] for row in told["arms"]} == set(ARMS)
    assert told["output_tokens"] == pytest.approx(9)
    row = next(row for row in told["arms"] if row["arm"] == told["arm"])
    assert row["predicted"].keys() >= {"seconds", "ttft_s", "decode_s", "weighted_s", "tau", "slowdown", "residual"}


def test_prompts_come_from_files_standard_input_and_whole_requests(url: str, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Say hello.")
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 128, "temperature": 0}
    (tmp_path / "request.json").write_text(json.dumps(body))
    said = [
        json.loads(invoke("explain", *arguments, "--url", url, "--json").stdout)["arms"]
        for arguments in (
            ["Say hello."],
            ["--file", str(tmp_path / "prompt.txt")],
            ["-f", str(tmp_path / "request.json")],
        )
    ]
    assert said[0] == said[1] == said[2]


def test_wrong_usage_ends_with_2_and_a_failure_with_1(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    for arguments in ([], ["a prompt", "--file", "x.txt"], ["--file", str(tmp_path / "list.json")]):
        assert invoke("explain", *arguments).exit_code == 2
    gone = draftpick("explain", "hello", "--url", REFUSING_URL)
    assert gone.returncode == 1
    assert "is the router running at the --url?" in words(gone.stderr)


class Answers:
    """An ASGI application that gives one answer to all."""

    def __init__(self, status: int, body: bytes) -> None:
        self._status, self._body = status, body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": self._status, "headers": []})
        await send({"type": "http.response.body", "body": self._body})


WRONG = [
    (401, b"{}", "needs a key with the scope `admin`: put one into DRAFTPICK_ADMIN_KEYS"),
    (403, b"{}", "needs a key with the scope `admin`"),
    (503, b'{"error": {"message": "every engine is full"}}', "every engine is full"),
    (200, b"<html>", "it answered 200: is it a router?"),
    (404, b"[]", "it answered 404: is it a router?"),
]


@pytest.mark.parametrize(("status", "body", "message"), WRONG)
async def test_what_is_no_explanation_is_said_in_words(status: int, body: bytes, message: str) -> None:
    server = LocalServer(Answers(status, body))
    await server.start()
    with pytest.raises(DraftpickError, match=re.escape(message)):
        await asyncio.to_thread(explained, server.url, {})
    await server.drain(0.1)
