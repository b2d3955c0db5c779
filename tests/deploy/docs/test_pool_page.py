"""The page on pools, followed with a real `vllm serve`."""

import asyncio
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import psutil
import pytest
import yaml

from draftpick.deploy.launch.ports import free_port
from draftpick.engines.pool.prediction import XARG
from draftpick.engines.pool.report import FIELD, parse
from draftpick.engines.reporting.report import BATCH, OutcomeReport
from draftpick.engines.reporting.ticket import HEADER, Ticket
from draftpick.router.config.router_config import load_config
from draftpick.router.epp.server import PickerServer
from draftpick.router.records import read
from draftpick.router.router import Router, fixed_address
from draftpick.router.types import Record
from tests.fleet import until
from tests.router.epp import envoy
from tests.router.epp.envoy import needs_envoy

PAGE = (Path(__file__).parents[3] / "docs" / "pool.md").read_text()
FLEET, *_ = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
ON_GPUS, ON_CPUS = re.findall(r"```sh\n(.*?)\n```", PAGE, re.S)
ASK = {"messages": [{"role": "user", "content": "Repeat five times: red, green, blue."}], "max_tokens": 48}
SECRET = "a secret of some length"

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(psutil.virtual_memory().total < 6 * 2**30, reason="an engine needs 4 GiB of memory"),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The page's engine, started by the page's command."""
    folder, port = tmp_path_factory.mktemp("pool"), free_port()
    (folder / "pool.yaml").write_text(FLEET)
    env = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env["DRAFTPICK_REPORT_SECRET"] = SECRET
    printed, served = (shlex.split(part) for part in ON_CPUS.replace("8001", str(port)).split(" | xargs "))
    words = [sys.executable, "-m", *printed]
    flags = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=True).stdout
    with open(folder / "log", "w") as log:
        words = [sys.executable, *served[1:], *shlex.split(flags)]
        process = subprocess.Popen(words, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            _wait(client, process, folder / "log")
            yield client
    finally:
        process.terminate()
        process.wait(60)


def _wait(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    while process.poll() is None:
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-4000:])


def drafters(answer: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = answer["metrics"]["speculative_decoding"][FIELD]
    return found


def ask(engine: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = engine.post("/v1/chat/completions", json={**ASK, "temperature": 0, **fields})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_an_answer_says_what_each_drafter_did(engine: httpx.Client) -> None:
    answer = ask(engine)
    reports, shown = parse(drafters(answer)), json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.S)[0])
    assert reports.keys() == shown.keys() == {"general", "suffix", "none"}
    assert all(one.keys() == shown["general"].keys() for one in drafters(answer).values())
    steps = answer["metrics"]["speculative_decoding"]["num_spec_steps"]
    assert sum(report.steps for name, report in reports.items() if name != "none") == pytest.approx(steps, abs=1)
    assert "kv_transfer_params" not in answer or answer["kv_transfer_params"] is None


def test_a_stream_s_last_chunk_says_it_too(engine: httpx.Client) -> None:
    body = {**ASK, "stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
    with engine.stream("POST", "/v1/chat/completions", json=body) as stream:
        chunks = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]
    assert parse(drafters(chunks[-1])).keys() == {"general", "suffix", "none"}


def test_a_forecast_reaches_the_engine(engine: httpx.Client) -> None:
    pinned = ask(engine, vllm_xargs={"draftpick_forecast": '{"only": "none"}'})
    assert {name for name, report in parse(drafters(pinned)).items() if report.steps} == {"none"}
    forecast = json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.S)[1])
    assert ask(engine, **forecast)["choices"] == ask(engine)["choices"] == pinned["choices"]


def test_what_is_no_forecast_is_ignored(engine: httpx.Client) -> None:
    assert drafters(ask(engine, vllm_xargs={"draftpick_forecast": "{"}))["general"]["scored"] > 0


def test_a_prediction_is_counted_in_the_usage_and_changes_nothing_else(engine: httpx.Client) -> None:
    without = ask(engine)["choices"]
    asked = {"vllm_xargs": {XARG: without[0]["message"]["content"]}}
    answer = ask(engine, **asked)
    assert answer["choices"] == without
    assert_all_came(answer["usage"])
    body = {**ASK, **asked, "stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
    with engine.stream("POST", "/v1/chat/completions", json=body) as stream:
        last = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")][-1]
    assert_all_came(last["usage"])


def assert_all_came(usage: dict[str, Any]) -> None:
    """All of a prediction came, and all of the answer but its end was predicted."""
    counts = usage["completion_tokens_details"]
    assert counts["rejected_prediction_tokens"] == 0
    assert usage["completion_tokens"] - 1 <= counts["accepted_prediction_tokens"] <= usage["completion_tokens"]


@contextmanager
def inbox() -> Iterator[tuple[str, list[OutcomeReport]]]:
    """A router's inbox: its address, and the reports that have come."""
    came: list[OutcomeReport] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.extend(BATCH.validate_json(self.rfile.read(int(self.headers["content-length"]))).outcomes)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", came
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_engine_reports_a_leased_requests_outcome(engine: httpx.Client) -> None:
    with inbox() as (router, came):
        for number, stream in enumerate((False, True), 1):
            ticket = Ticket(f"{number:032x}", router).to_header(SECRET)
            body = {**ASK, "temperature": 0, "stream": stream}
            answer = engine.post("/v1/chat/completions", json=body, headers={HEADER: ticket})
            assert answer.status_code == 200
            deadline = time.monotonic() + 10
            while len(came) < number and time.monotonic() < deadline:
                time.sleep(0.05)
    answered = ask(engine)
    assert [report.lease for report in came] == [f"{number:032x}" for number in (1, 2)]
    for report in came:
        assert (report.status, report.error) == (200, None)
        assert report.usage is not None
        assert report.metrics is not None
        assert report.usage["completion_tokens"] == answered["usage"]["completion_tokens"]
        assert report.metrics["generation_time_ms"] > 0
        assert parse(report.metrics["speculative_decoding"][FIELD]).keys() == {"general", "suffix", "none"}


@needs_envoy
def test_envoy_asks_the_picker_and_streams_from_the_engine(
    engine: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAFTPICK_REPORT_SECRET", SECRET)
    told, records = asyncio.run(_through_envoy(str(engine.base_url).rstrip("/"), tmp_path))
    assert told == 3
    assert {(one.outcome.status, one.decision.arm) for one in records} == {("ok", "pool/none"), ("ok", "pool/suffix")}
    for one in records:
        assert one.outcome.output_tokens is not None
        assert one.outcome.output_tokens > 1
        assert one.outcome.drafters is not None
        steps = {name for name, report in one.outcome.drafters.items() if report.steps}
        assert steps <= {"none", one.decision.arm.partition("/")[2]}, "the forecast's pin has reached the engine"


async def _through_envoy(url: str, folder: Path) -> tuple[int, list[Record]]:
    """Send three pinned requests through Envoy; returns the reported leases, and the records."""
    fleet = yaml.safe_load(FLEET)
    fleet["engines"] = [{**one, "url": url} for one in fleet["engines"]]
    fleet["router"] |= {"leases": {"enabled": True}, "records": {"dir": str(folder / "records")}}
    router = Router(load_config(fleet), {"pool": fixed_address(url)})
    picker = PickerServer(router.app, router.parts, "127.0.0.1", 0, router.access)
    router.beside.append(picker)
    await router.start()
    made = envoy.at(free_port(), picker.port, [url.removeprefix("http://")], {"message_timeout": "5s"})
    async with envoy.running(made, folder) as client:
        for arm, stream in (("pool/none", False), ("pool/suffix", True), ("pool/none", True)):
            body = {"model": fleet["target"]["name"], **ASK, "temperature": 0, "stream": stream}
            answer = await client.post("/v1/chat/completions", json=body, headers={"x-draftpick-arm": arm})
            assert (answer.status_code, answer.headers["x-draftpick-arm"]) == (200, arm)
            assert not stream or answer.text.rstrip().endswith("data: [DONE]")
        await until(lambda: not len(router.parts.leases), timeout_s=10)
    told = router.parts.leases.ends["told"]
    await router.stop()
    return told, list(read(folder / "records"))


def test_the_metrics_count_by_drafter(engine: httpx.Client) -> None:
    ask(engine)
    found = engine.get("/metrics").text
    counts = dict(re.findall(r'^draftpick_pool_steps_total\{drafter="(\w+)"\} (\S+)$', found, re.M))
    assert sum(map(float, counts.values())) > 0
    assert 'draftpick_pool_left_out{drafter="general"} 0.0' in found


def counted(engine: httpx.Client) -> float:
    """Steps of all drafters since the engine started."""
    return sum(map(float, re.findall(r"^draftpick_pool_steps_total\{.*\} (\S+)$", engine.get("/metrics").text, re.M)))


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {**ASK, "n": 2, "temperature": 1}),
        (
            "/v1/chat/completions",
            {**ASK, "n": 2, "temperature": 1, "stream": True, "stream_options": {"include_usage": True}},
        ),
        ("/v1/chat/completions", {**ASK, "stream": True}),
        ("/v1/completions", {"prompt": ["red, green, blue,", "one, two, three,"], "max_tokens": 16}),
        ("/v1/responses", {"input": "Repeat five times: red, green, blue.", "max_output_tokens": 32}),
    ],
)
def test_answers_without_metrics_of_one_sequence_are_counted_and_show_nothing_of_ours(
    engine: httpx.Client, path: str, fields: dict[str, Any]
) -> None:
    before = counted(engine)
    answer = engine.post(path, json={"temperature": 0, **fields})
    assert answer.status_code == 200, answer.text
    assert "draftpick_pool" not in answer.text
    assert '"kv_transfer_params":{' not in answer.text
    assert counted(engine) > before + 5


def test_both_commands_print_the_same_arguments() -> None:
    assert ON_GPUS.partition(" | ")[0] == ON_CPUS.partition(" | ")[0]
    assert ON_GPUS.endswith("vllm serve --port 8001")
