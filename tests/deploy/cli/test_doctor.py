"""`draftpick doctor`: engines are asked, findings are shown, and exit codes tell."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from typer.testing import CliRunner, Result

from draftpick.deploy.cli import main as cli
from draftpick.deploy.doctor.probe import ServedModel, ask
from draftpick.engines.errors import ConfigError
from draftpick.engines.http.server import LocalServer
from draftpick.engines.mock.app import MockSpec, mock_app
from draftpick.router.records import encode
from tests.deploy.doctor.ward import PLAIN, drafting, fleet, logged


@contextmanager
def served(*apps: Any) -> Iterator[list[str]]:
    """The addresses of applications that are served by another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(20)

    servers = [LocalServer(app) for app in apps]
    try:
        for server in servers:
            run(server.start())
        yield [server.url for server in servers]
    finally:
        for server in servers:
            run(server.drain(0.1))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


METRICS = """
# TYPE vllm:spec_decode_num_drafts counter
vllm:spec_decode_num_drafts_total{engine="0"} 900
# TYPE vllm:spec_decode_num_accepted_tokens_per_pos counter
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 30
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 300
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{cache_dtype="auto",enable_prefix_caching="True"} 1
# TYPE vllm:engine_sleep_state gauge
vllm:engine_sleep_state{sleep_state="awake"} 0
vllm:engine_sleep_state{sleep_state="discard_all"} 1
"""


def odd_engine() -> Starlette:
    """An engine of vLLM that sleeps, is slow with one page, and answers a chat with nonsense."""

    async def models(request: Request) -> Response:
        return JSONResponse({"data": [{"id": "m", "root": "/m", "max_model_len": 9}, {"no": "id"}, 3]})

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(METRICS)

    async def version(request: Request) -> Response:
        await asyncio.sleep(5)
        return JSONResponse({"version": "0.29.0"})

    async def chat(request: Request) -> Response:
        return PlainTextResponse("data: {nonsense\n\n")

    routes = [Route("/v1/models", models), Route("/metrics", metrics), Route("/version", version)]
    return Starlette(routes=[*routes, Route("/v1/chat/completions", chat, methods=["POST"])])


def test_what_an_engine_is_asked_for() -> None:
    with served(mock_app(MockSpec(step_s=0, prefill_s=0), model="m"), odd_engine()) as (mock, odd):
        said = ask({"mock": mock, "odd": odd, "gone": "http://127.0.0.1:9"}, patience_s=1.0)
    assert said["mock"].models == [ServedModel("m", "m", 32_768)]
    assert said["mock"].answer is not None
    assert said["mock"].answer.output_tokens == 24
    assert said["mock"].load
    assert said["mock"].tokens
    assert (said["odd"].version, said["odd"].answer, said["odd"].load) == (None, None, False)
    assert said["odd"].positions == [300.0, 30.0]
    assert said["odd"].cache["enable_prefix_caching"] == "True"
    assert said["odd"].samples["vllm:engine_sleep_state:awake"] == 0.0
    assert str(said["gone"].error).startswith("does not answer: ConnectError")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["doctor", *arguments], env={"COLUMNS": "160", "TERM": "dumb"})


def written(tmp_path: Path, config: dict[str, Any]) -> str:
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(config))
    return str(tmp_path / "fleet.yaml")


def test_the_shipped_fleets_have_no_problems() -> None:
    for name in ("embedded", "mock"):
        result = invoke(name, "--json")
        problems = [one for one in json.loads(result.stdout)["findings"] if one["level"] == "problem"]
        assert (result.exit_code, problems) == (0, [])


def test_problems_are_shown_first_and_in_the_exit_code(tmp_path: Path) -> None:
    path = written(tmp_path, fleet(tmp_path, engine_kwargs={"per_request_spec_decode_metrics": "summary"}))
    text, as_json = invoke(path), invoke(path, "--json")
    assert (text.exit_code, as_json.exit_code) == (1, 1)
    found = json.loads(as_json.stdout)
    assert found["findings"][0]["level"] == "problem"
    assert found["counts"]["problem"] == sum(one["level"] == "problem" for one in found["findings"])
    assert any("Draftpick sets it on engines with one" in one["cure"] for one in found["findings"])
    assert "problem" in text.stdout.splitlines()[3]
    assert "2 engines, 0 asked:" in text.stdout


def test_a_model_that_is_missing_hides_no_other_finding(tmp_path: Path) -> None:
    missing = drafting("draft_model", model=str(tmp_path / "none"))
    path = written(tmp_path, fleet(tmp_path, PLAIN, missing, engine_kwargs={"stream_interval": 5}))
    checks = {one["check"] for one in json.loads(invoke(path, "--json").stdout)["findings"] if one["level"] != "ok"}
    assert {"models", "stream_interval"} <= checks


def test_all_lists_what_is_well() -> None:
    assert "engines with drafters do not sleep" not in invoke("mock").stdout
    assert "engines with drafters do not sleep" in invoke("mock", "--all").stdout


def test_addresses_alone_are_a_case() -> None:
    spec = MockSpec(step_s=0, prefill_s=0)
    with served(mock_app(spec, model="m"), mock_app(spec, model="other")) as (one, other):
        fine = invoke("--url", f"a={one}", "--url", f"b={one}", "--json")
        apart = invoke("--url", f"a={one}", "--url", f"b={other}", "--json")
    assert fine.exit_code == 0
    assert not any(finding["where"].startswith("router.") for finding in json.loads(fine.stdout)["findings"])
    assert apart.exit_code == 1
    found = [one for one in json.loads(apart.stdout)["findings"] if one["check"] == "same_model"]
    assert found[0]["what"] == "serves other, not m"


def test_engines_of_a_configuration_are_asked(tmp_path: Path) -> None:
    remote = {"name": "remote", "url": "http://127.0.0.1:9"}
    result = invoke(written(tmp_path, fleet(tmp_path, PLAIN, remote)), "--timeout", "1", "--json")
    found = [one for one in json.loads(result.stdout)["findings"] if one["check"] == "answers"]
    assert result.exit_code == 1
    assert [one["where"] for one in found] == ["remote"]


def test_records_of_the_configuration_are_read(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    lines = b"".join(map(encode, logged(60, acceptance_length=1.0)))
    (tmp_path / "records" / "records-1.jsonl").write_bytes(lines)
    path = written(tmp_path, fleet(tmp_path))
    found = {one["check"]: one for one in json.loads(invoke(path, "--json").stdout)["findings"]}
    assert found["lost_drafts"]["level"] == "problem"
    (tmp_path / "records" / "records-1.jsonl").write_bytes(b"{}\n")
    found = {one["check"]: one for one in json.loads(invoke(path, "--json").stdout)["findings"]}
    assert found["readable"]["what"].endswith("records-1.jsonl: 1 damaged line is skipped")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--url", "nonsense"),
        ("mock", "--url", "other=http://127.0.0.1:9"),
        ("none.yaml",),
        ("mok",),
        ("mock", "--records", "x"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert isinstance(result.exception, ConfigError) or result.exit_code == 2


def test_an_invalid_configuration_is_reported_as_json(tmp_path: Path) -> None:
    result = invoke(written(tmp_path, fleet(tmp_path, rooter={})), "--json")
    assert result.exit_code == 2
    assert "did you mean 'router'?" in json.loads(result.stdout)["problems"][0]
