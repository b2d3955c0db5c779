"""The embedded fleet: real vLLM engines behind the real router, through real HTTP and the `openai` client.

Of its four engines three, which is one of each way to draft: none, from the text, by a head.
"""

import asyncio
import importlib.util
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from starlette.requests import Request as HttpRequest
from starlette.types import Receive, Scope, Send

from draftpick.deploy.config import with_engines
from draftpick.deploy.launch.ports import free_port
from draftpick.deploy.launch.ray_serve import running
from draftpick.engines import load_report as load
from draftpick.engines.cache_dir import cache_dir
from draftpick.engines.load_report import LoadReport
from draftpick.engines.models.embedded import TARGET_NAME
from draftpick.engines.profile import cache as profile_cache
from draftpick.engines.profile import identity, profile
from draftpick.engines.profile.identity import EngineIdentity
from draftpick.engines.profile.measure import ProfilePlan, measure_profile
from draftpick.engines.profile.profile import Profile
from draftpick.engines.profile.prompts import TEXTS
from tests.e2e.conftest import eventually, fleet, recorded
from tests.e2e.official_client import bench_serve
from tests.fleet import Servers, routed

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(psutil.virtual_memory().total < 8 * 2**30, reason="three engines need 8 GiB of memory"),
]
MODEL = "smollm2-135m-instruct"
CHAT = "/v1/chat/completions"
DRAFTED = ("num_spec_steps", "num_accepted_draft_tokens")
ARMS = ("plain", "suffix", "general")


@pytest.fixture(scope="module")
def real_url(records_dir: Path) -> Iterator[str]:
    config = with_engines(fleet("embedded", records_dir), ARMS)
    with running(config, port=free_port(), timeout_s=800) as url:
        yield url


@pytest.fixture
def client(real_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real_url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def ask(text: str, **more: object) -> dict[str, object]:
    fields = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 16, "temperature": 0}
    return {**fields, **more}


def metric(url: str, arm: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics", timeout=30).text.splitlines()
    own = [line for line in lines if line.startswith(f'{name}{{arm="{arm}",')]
    assert own, f"no {name} of {arm}"
    return sum(float(line.rsplit(" ", 1)[1]) for line in own)


def test_the_official_client_benchmark_runs_through_the_router(real_url: str, tmp_path: Path) -> None:
    tokenizer = str(cache_dir() / TARGET_NAME)
    found = bench_serve(real_url, MODEL, tokenizer, tmp_path, prompts=6, tokens=16)
    assert (found["completed"], found["total_output_tokens"]) == (6, 6 * 16)
    assert found["mean_ttft_ms"] > 0
    assert found["spec_decode_num_drafts"] > 0  # of the whole fleet, from the router's own /metrics
    assert found["spec_decode_acceptance_length"] >= 1


def test_the_shipped_policy_serves(real_url: str) -> None:
    state = httpx.get(f"{real_url}/ready").json()
    assert state["engines"] == dict.fromkeys(ARMS, 1)
    assert state["policy"].startswith("calibrated:")
    assert state["policy_rejected"] is None


def test_every_engine_gives_the_target_s_answer_with_its_own_acceptance(real_url: str) -> None:
    bodies = {}
    for arm in ARMS:
        headers = {"x-draftpick-arm": arm}
        answer = httpx.post(
            real_url + CHAT, json=ask("List the numbers 1 to 20.", max_tokens=40), headers=headers, timeout=120
        )
        assert answer.headers["x-draftpick-arm"] == arm
        bodies[arm] = answer.json()
    assert bodies["plain"]["metrics"].get("speculative_decoding") is None
    for arm in ARMS[1:]:
        assert bodies[arm]["metrics"]["speculative_decoding"]["mean_acceptance_length"] >= 1
        assert bodies[arm]["model"] == MODEL


def test_a_greedy_stream_that_breaks_goes_on_at_another_engine(real_url: str, tmp_path: Path) -> None:
    (engine,) = httpx.get(f"{real_url}/ready").json()["breakers"]["plain"]
    text, last = asyncio.run(_broken_after(6, engine, tmp_path))
    whole = httpx.post(engine + CHAT, json=ask("List the numbers 1 to 20.", max_tokens=24), timeout=60).json()
    said = whole["choices"][0]["message"]["content"]
    assert (text[:12], len(text) > 20) == (said[:12], True)  # in bfloat16 the rest may round otherwise
    assert last["usage"]["completion_tokens"] == 24
    assert last["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]


async def _broken_after(chunks: int, engine: str, folder: Path) -> tuple[str, Any]:
    """(text, last chunk) of a stream whose first engine is cut after some chunks."""

    async def cut(scope: Scope, receive: Receive, send: Send) -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            body = await HttpRequest(scope, receive).body()
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
            )
            async with client.stream("POST", engine + CHAT, content=body) as answer:
                left = chunks
                async for line in answer.aiter_lines():
                    if line and left:
                        left -= 1
                        part = {"type": "http.response.body", "body": f"{line}\n\n".encode(), "more_body": True}
                        await send(part)

    servers = Servers()
    urls = {"cut": (await servers.serve(cut)).url, "plain": engine}
    asked = ask("List the numbers 1 to 20.", max_tokens=24, stream=True, stream_options={"include_usage": True})
    async with routed(servers, folder, urls, model=MODEL, resume_streams=True) as app:
        answer = await app.client.post(CHAT, json=asked)
        assert [one.decision.arm for one in await app.records(2)] == ["cut", "plain"]
    await servers.drain()
    found = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    text = "".join(choice["delta"].get("content") or "" for chunk in found for choice in chunk["choices"])
    return text, found[-1]


def test_chat_with_n_stop_and_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Count from one to five in digits."}],
        max_tokens=24,
        n=2,
        stop=["4"],
        logprobs=True,
        top_logprobs=2,
        temperature=0.5,
    )
    assert len(answer.choices) == 2
    assert all("4" not in (choice.message.content or "") for choice in answer.choices)
    assert answer.choices[0].logprobs is not None


def test_completions_and_responses(client: openai.OpenAI) -> None:
    text = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=8, temperature=0)
    assert "Paris" in text.choices[0].text
    response = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=16)
    assert response.output_text


def test_json_schema_is_obeyed(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}}, "required": ["name"]}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Give me a person's name as JSON."}],
        max_tokens=40,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema}},
    )
    assert "name" in json.loads(answer.choices[0].message.content or "")


def test_a_named_tool_is_called(client: openai.OpenAI) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the weather in Rome?"}],
        max_tokens=160,
        temperature=0,
        tools=[{"type": "function", "function": {"name": "weather", "parameters": parameters}}],
        tool_choice={"type": "function", "function": {"name": "weather"}},
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert calls[0].function.name == "weather"


def test_usage_in_streams_is_seen_only_by_those_who_ask(client: openai.OpenAI) -> None:
    def stream(**more: object) -> list[openai.types.chat.ChatCompletionChunk]:
        return list(client.chat.completions.create(**ask("Say hi.", stream=True), **more))  # type: ignore[call-overload]

    silent = stream()
    assert all(chunk.usage is None and chunk.choices for chunk in silent)
    asked = stream(stream_options={"include_usage": True})
    assert asked[-1].usage.completion_tokens > 0


def test_a_field_that_the_router_does_not_know_reaches_vllm(real_url: str) -> None:
    answer = httpx.post(real_url + CHAT, json=ask("Say hi.", return_token_ids=True), timeout=60).json()
    assert answer["choices"][0]["token_ids"]


def test_vllm_s_own_errors_pass_through(real_url: str) -> None:
    wrong = httpx.post(real_url + CHAT, json={**ask("hi"), "model": "nobody"}, timeout=60)
    assert wrong.status_code == 404
    assert "nobody" in wrong.json()["error"]["message"]
    assert httpx.post(real_url + CHAT, json=ask("hi", temperature=-3), timeout=60).status_code == 400


def test_other_paths_of_the_engine_pass_through(real_url: str) -> None:
    assert httpx.get(f"{real_url}/version", timeout=30).json()["version"]
    tokens = httpx.post(f"{real_url}/tokenize", json={"model": MODEL, "prompt": "hello world"}, timeout=30).json()
    assert tokens["count"] == 2


def test_seeded_requests_in_parallel_leave_the_engine_alive(real_url: str) -> None:
    long = "word " * 900

    def send(i: int) -> int:
        body = ask(f"{i} {long}", seed=i, temperature=1.0, max_tokens=4)
        return httpx.post(real_url + CHAT, json=body, headers={"x-draftpick-arm": "plain"}, timeout=200).status_code

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(send, range(4))) == [200] * 4


def test_a_disconnect_stops_the_engine_and_leaves_one_record(real_url: str, records_dir: Path) -> None:
    headers = {"x-draftpick-arm": "plain", "x-request-id": "gone"}
    body = ask("Write a long story.", max_tokens=1500, ignore_eos=True, stream=True)  # which takes half a minute
    with httpx.stream("POST", real_url + CHAT, json=body, headers=headers, timeout=60) as answer:
        next(answer.iter_bytes())
    assert eventually(lambda: load_of(engine_of(real_url, "plain")).running == 0, timeout_s=10)
    assert eventually(lambda: metric(real_url, "plain", "vllm:num_requests_running") == 0)
    assert [record.outcome.status for record in recorded(records_dir, "gone")] == ["cancelled"]


def test_records_hold_what_was_measured_and_no_prompt(real_url: str, records_dir: Path) -> None:
    secret = "the quick zebra counts stripes"
    headers = {"x-request-id": "measured"}
    httpx.post(real_url + CHAT, json=ask(secret, max_tokens=12), headers=headers, timeout=60).raise_for_status()
    (record,) = recorded(records_dir, "measured")
    assert record.outcome.output_tokens
    assert record.outcome.ttft_s
    assert {arm for arm, p in record.decision.probabilities.items() if p} <= set(ARMS)
    assert record.context is not None
    assert all("zebra" not in path.read_text() for path in records_dir.glob("*.jsonl"))


def engine_of(real_url: str, arm: str) -> str:
    (engine,) = httpx.get(f"{real_url}/ready").json()["breakers"][arm]
    return str(engine)


def load_of(engine: str) -> LoadReport:
    told = LoadReport.from_json(httpx.get(engine + load.PATH, timeout=30).content)
    assert told is not None
    return told


def test_an_engine_says_how_much_runs_and_waits_and_then_that_nothing_does(real_url: str) -> None:
    engine = engine_of(real_url, "suffix")

    def send(i: int) -> int:
        body = ask(f"Count on from {i}.", max_tokens=40, ignore_eos=True)
        return httpx.post(engine + CHAT, json=body, timeout=200).status_code

    for requests in (4, 18):  # 16 run at once
        with ThreadPoolExecutor(requests) as pool:
            sent = [pool.submit(send, i) for i in range(requests)]
            seen = []
            while not all(one.done() for one in sent):
                seen.append(load_of(engine))
                time.sleep(0.02)
        assert max(one.running for one in seen) == min(requests, 16)
        assert max(one.waiting for one in seen) >= max(0, requests - 16)
        assert max(one.kv_cache_usage for one in seen) > 0
        assert eventually(lambda: (load_of(engine).running, load_of(engine).waiting) == (0, 0))
    last = load_of(engine)
    assert last.step_s is not None
    assert 0 < last.step_s < 1
    assert last.tokens_per_s > 0
    assert last.acceptance_length is not None
    assert 1 <= last.acceptance_length <= 9
    # Nothing is shown of what ended five seconds ago. An idle engine may measure its own steps meanwhile.
    assert eventually(lambda: load_of(engine) == LoadReport(0, 0), timeout_s=60)


def test_a_profile_agrees_with_what_answers_take(real_url: str) -> None:
    engine = engine_of(real_url, "suffix")
    for _ in range(3):  # on a quiet machine within a tenth; here other work may slow either
        before = seconds_of_a_step(engine)
        measured = asyncio.run(measure_profile(engine, plan=ProfilePlan(batches=(1, 4)))).profile
        answers = pytest.approx((before + seconds_of_a_step(engine)) / 2, rel=0.3)
        if measured.step(1) == answers:
            break
    assert measured.step(1) == answers
    assert measured.step(4) < 3 * measured.step(1)  # four requests share the weights that a step reads
    assert measured.max_running == 16
    assert 0 < measured.prefill_s_per_token < 0.02


def seconds_of_a_step(engine: str) -> float:
    """TPOT times tau, over whole answers one by one."""
    seconds, steps = 0.0, 0
    for text in TEXTS[:4]:
        answer = httpx.post(engine + CHAT, json=ask(text, max_tokens=48), timeout=120).json()
        seconds += answer["metrics"]["generation_time_ms"] / 1000
        drafted = answer["metrics"].get("speculative_decoding") or {"num_spec_steps": 0, "num_accepted_draft_tokens": 0}
        # Steps for which nothing was drafted are not among vLLM's.
        others = answer["usage"]["completion_tokens"] - 1 - sum(map(drafted.get, DRAFTED))
        steps += drafted["num_spec_steps"] + max(0, others)
    return seconds / steps


def identity_of(engine: str) -> EngineIdentity:
    told = EngineIdentity.from_json(httpx.get(engine + identity.PATH, timeout=30).content)
    assert told is not None
    return told


def test_an_engine_finds_and_shows_its_profile(real_url: str) -> None:
    engine = engine_of(real_url, "suffix")
    told, other = identity_of(engine), identity_of(engine_of(real_url, "plain"))
    assert (told.build != other.build, told.machine) == (True, other.machine)
    if profile_cache.read(told) is not None:
        pytest.skip("this engine was measured on this machine; its profile stays as it is")
    assert httpx.get(engine + profile.PATH, timeout=30).status_code == 404
    steps = (((0.05,),), ((0.06,),))
    mine = Profile(told.build, told.machine, (1,), (64,), steps, 0.01, 0.001, 16)
    path = profile_cache.write(mine)
    try:
        assert Profile.from_json(httpx.get(engine + profile.PATH, timeout=30).content) == mine
    finally:
        path.unlink()


def test_a_killed_replica_takes_its_workers_along_and_requests_go_on(real_url: str) -> None:
    (replica,) = [p for p in psutil.Process().children(recursive=True) if "engine-suffix" in " ".join(p.cmdline())]
    workers = replica.children(recursive=True)
    replica.kill()
    assert httpx.post(real_url + CHAT, json=ask("hi"), timeout=60).status_code == 200
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
