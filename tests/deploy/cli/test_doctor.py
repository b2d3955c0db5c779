"""`draftpick doctor`: engines are asked, findings are shown, and exit codes tell."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
from draftpick.policy_training.data.dataset import DatasetError, Measurement, Source, save
from draftpick.policy_training.data.matrix import Matrix
from draftpick.router.records import encode
from draftpick.router.types import Outcome, Record
from tests.deploy.doctor.ward import PLAIN, drafting, fleet, logged
from tests.policy_training.bandit import ARMS, COSTS
from tests.policy_training.headroom.test_headroom import drawn, profile
from tests.policy_training.headroom.test_headroom_records import log


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
    assert "Draftpick sets it on engines with one" in text.stdout
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
    result = invoke(written(tmp_path, fleet(tmp_path, PLAIN, remote)), "--patience", "1", "--json")
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
    assert "no record of schema" in found["readable"]["what"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--url", "nonsense"),
        ("mock", "--url", "other=http://127.0.0.1:9"),
        ("none.yaml",),
        ("mok",),
        ("mock", "--records", "x"),
        ("mock", "--headroom"),
        ("mock", "--headroom", "--records", "x", "--data", "y"),
        ("mock", "--headroom", "--records", "x", "--url", "plain=http://127.0.0.1:9"),
        ("mock", "--headroom", "--records", "x", "--rate", "3"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert isinstance(result.exception, ConfigError) or result.exit_code == 2


def test_a_wrong_configuration_is_told_to_programs(tmp_path: Path) -> None:
    result = invoke(written(tmp_path, fleet(tmp_path, rooter={})), "--json")
    assert result.exit_code == 2
    assert "did you mean 'router'?" in json.loads(result.stdout)["problems"][0]


# --- headroom ---


def judged(*arguments: str) -> dict[str, Any]:
    """What `doctor --headroom` says to a program."""
    result = invoke("--headroom", "--learner", "ridge", "--json", *arguments)
    assert result.exit_code == 0, result.exception
    said: dict[str, Any] = json.loads(result.stdout)
    return said


def dataset(path: Path, data: Matrix, source: Source = "live") -> Path:
    """A matrix as a dataset: measured, or replayed and without times."""
    assert data.contexts is not None
    rows = []
    for i, id in enumerate(data.prompt_ids):
        for a, arm in enumerate(data.arms):
            tau, tokens = float(data.acceptance_length[i, a]), int(data.output_tokens[i])
            tpot_s = (float(data.time_s[i, a]) - 0.02) / (tokens - 1) if source == "live" else None
            ttft_s = 0.02 if source == "live" else None
            outcome = Outcome("ok", 200, ttft_s, tpot_s, output_tokens=tokens, acceptance_length=tau)
            row = Measurement(id, data.kinds[i], arm, arm, float(data.temperatures[i]), 64, outcome, source=source)
            rows.append(row)
    save(path, rows, {id: {"features": data.contexts[i]} for i, id in enumerate(data.prompt_ids)})
    return path


def stored(folder: Path, records: Sequence[Record]) -> str:
    folder.mkdir(parents=True)
    (folder / "records-1.jsonl").write_bytes(b"".join(map(encode, records)))
    return str(folder)


def test_records_with_shadows_are_worth_it_or_not(tmp_path: Path) -> None:
    rich = stored(tmp_path / "rich", log(drawn(600, 1, room=0.8), shadows=3))
    poor = stored(tmp_path / "poor", log(drawn(600, 1, room=0.0, noise=0.05), shadows=3))
    found = judged("--records", rich, "--plot", str(tmp_path / "plots" / "headroom.png"))
    assert found["verdict"] == "worth it"
    assert found["plain"] == "plain"
    assert found["source"].startswith("records with shadows")
    assert found["found"]["gain"]["routed"]["low"] > 0.03
    assert (tmp_path / "plots" / "headroom.png").stat().st_size > 10_000
    assert judged("--records", rich, "--worth", "0.9")["verdict"] == "not worth it"
    assert judged("--records", poor)["verdict"] == "not worth it"


def test_what_people_are_shown(tmp_path: Path) -> None:
    folder = stored(tmp_path / "records", log(drawn(600, 1, room=0.8), shadows=3))
    result = invoke("--headroom", "--learner", "ridge", "--records", folder)
    text = " ".join(result.stdout.split())
    assert result.exit_code == 0
    assert "worth it: on 200 requests routing takes" in text
    for part in ("would get", "fastest on", "sampled", "greedy", "saved by routing", "records with shadows"):
        assert part in text


def test_records_without_shadows_are_estimated_or_refused(tmp_path: Path) -> None:
    few = judged("--records", stored(tmp_path / "few", log(drawn(300, 0, room=0.8))))
    assert few["verdict"] == "cannot tell"
    assert few["found"]["needs"] > 0
    enough = judged("--records", stored(tmp_path / "enough", log(drawn(1500, 0, room=0.8))))
    assert enough["source"].startswith("records without shadows")
    assert (enough["verdict"], enough["found"]["gain"]["oracle"]) == ("worth it", None)


def test_records_of_the_configuration_and_of_any_store(tmp_path: Path) -> None:
    folder = stored(tmp_path / "records", log(drawn(600, 1, room=0.8), shadows=3))
    engines = [{"name": name, "kind": "mock"} for name in ("plain", "ngram", "suffix", "math")]
    path = written(tmp_path, fleet(tmp_path, *engines))
    assert judged(path)["verdict"] == "worth it"
    assert judged("--records", f"file://{folder}")["verdict"] == "worth it"


def test_datasets(tmp_path: Path) -> None:
    live = dataset(tmp_path / "live.parquet", drawn(60, 0, room=0.9))
    more = replace(drawn(160, 1, room=0.9), prompt_ids=tuple(f"other-{i}" for i in range(160)))
    replayed = dataset(tmp_path / "replayed.parquet", more, "replay")
    found = judged("--data", str(live))
    assert (found["verdict"], found["source"]) == ("worth it", "measured times")
    assert set(found["found"]["slices"]) <= {f"cluster-{i}" for i in range(4)}
    both = judged("--data", str(live), "--data", str(replayed))
    assert both["source"] == "replayed acceptance, and steps as measured"
    assert both["found"]["gain"]["n"] == 220


def test_replayed_requests_need_times_from_somewhere(tmp_path: Path) -> None:
    replayed = dataset(tmp_path / "replayed.parquet", drawn(160, 1, room=0.9), "replay")
    alone = invoke("--headroom", "--data", str(replayed))
    assert isinstance(alone.exception, DatasetError)
    assert "give --profiles FOLDER" in str(alone.exception)
    folder = tmp_path / "profiles"
    folder.mkdir()
    for arm, step in zip(ARMS, COSTS.step_s[:, 0], strict=True):
        steep = (float(step), float(step) * (1 if arm == "plain" else 12))
        (folder / f"{arm}.json").write_text(json.dumps(profile(steep).as_json()))
    calm = judged("--data", str(replayed), "--profiles", str(folder))
    assert (calm["verdict"], calm["loaded"]) == ("worth it", None)
    busy = judged("--data", str(replayed), "--profiles", str(folder), "--rate", "60", "--learner", "tau_cost")
    assert (busy["found"]["verdict"], busy["verdict"]) == ("worth it", "not worth it")
    assert busy["loaded"]["single"] == "plain"
    (folder / "math.json").unlink()
    missing = invoke("--headroom", "--data", str(replayed), "--profiles", str(folder))
    assert "no profile of math" in str(missing.exception)


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "is not readable"), (b"", "no usable record"), (b"\x00\xff\n", "records-1")]
)
def test_damaged_and_empty_records(tmp_path: Path, content: bytes | None, problem: str) -> None:
    folder = tmp_path / "records"
    if content is not None:
        folder.mkdir()
        (folder / "records-1.jsonl").write_bytes(content)
    result = invoke("--headroom", "--records", str(folder))
    assert isinstance(result.exception, DatasetError)
    assert problem in str(result.exception)


def test_an_unknown_learner_lists_them(tmp_path: Path) -> None:
    result = invoke("--headroom", "--records", str(tmp_path), "--learner", "tau_csot")
    assert "did you mean 'tau_cost'?" in str(result.exception)


@pytest.mark.vllm
def test_prompts_are_replayed_first(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    texts = [f"Repeat this twice: {word} {word}" for word in "abcdefghijklmnopqrstuvwxyz"] * 2
    prompts.write_text("".join(json.dumps({"prompt": f"{text} {i}"}) + "\n" for i, text in enumerate(texts)))
    command = [
        sys.executable,
        "-m",
        "draftpick",
        "doctor",
        "embedded",
        "--headroom",
        "--prompts",
        str(prompts),
        "--json",
    ]
    options = [
        "-n",
        "52",
        "--max-tokens",
        "8",
        "--sampled-share",
        "0",
        "--learner",
        "ridge",
        "--out",
        str(tmp_path / "x"),
    ]
    run = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["found"]["gain"]["n"] == 52
    assert found["verdict"] in ("worth it", "not worth it", "cannot tell")
    assert "when the policy 'embedded' was trained" in found["source"]
