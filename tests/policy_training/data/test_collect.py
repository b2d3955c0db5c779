"""Collection against mock engines on loopback: what is measured, and what a failure leaves."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from draftpick.engines.mock.app import MockSpec
from draftpick.policy_training.data.collect import Task, measure, model_of, pinned_tasks
from draftpick.policy_training.data.dataset import Dataset, DatasetError, Measurement, load, save
from draftpick.policy_training.data.matrix import matrix
from draftpick.policy_training.workloads import Message, Prompt
from draftpick.router import headers
from tests.fleet import BREAKS, FAILS, FAST, MODEL, REFUSING_URL, Mock, StartMock

pytestmark = pytest.mark.asyncio(loop_scope="module")

ARMS = ("plain", "ngram", "suffix", "math")
PROMPTS = [Prompt(f"chat-{i}", "chat", f"Tell me about city {i}.", 0.7 * (i % 2), 20) for i in range(10)]
DRAFTS = MockSpec(step_s=0.001, prefill_s=0.005, num_speculative_tokens=3, acceptance_length=2.0)


async def one(url: str, task: Task | None = None, **options: Any) -> Measurement:
    (result,) = await measure(url, MODEL, [task or Task(PROMPTS[0], "ngram", "ngram")], **options)
    return result


def last(mock: Mock) -> tuple[dict[str, Any], dict[str, str]]:
    """Body and headers of the last request that an engine got."""
    return json.loads(mock.last_body), mock.engine.state()["last_headers"]


# --- what is measured ---


async def test_an_answer_is_measured(mock_engine: StartMock) -> None:
    result = await one((await mock_engine(DRAFTS)).url)
    outcome = result.outcome
    assert (result.prompt_id, result.task, result.label, result.arm) == ("chat-0", "chat", "ngram", "ngram")
    assert (result.temperature, result.max_tokens) == (0.0, 20)
    assert (outcome.status, outcome.http_status, outcome.output_tokens) == ("ok", 200, 20)
    assert outcome.ttft_s is not None
    assert outcome.tpot_s is not None
    assert outcome.e2e_s is not None
    assert 0.005 <= outcome.ttft_s < outcome.e2e_s
    assert outcome.e2e_s == pytest.approx(outcome.ttft_s + 19 * outcome.tpot_s, rel=0.2)  # by the engine's clock
    assert outcome.acceptance_length is not None
    assert 1 < outcome.acceptance_length <= 4
    assert outcome.acceptance_rate == pytest.approx((outcome.acceptance_length - 1) / 3)


async def test_an_engine_without_a_drafter_reports_no_acceptance(mock_engine: StartMock) -> None:
    outcome = (await one((await mock_engine()).url)).outcome
    assert outcome.status == "ok"
    assert outcome.acceptance_length is None


async def test_the_request_is_the_prompt_pinned_to_its_arm(
    mock_engine: StartMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock = await mock_engine()
    monkeypatch.setenv("DRAFTPICK_ADMIN_KEYS", "secret")
    prompt = replace(PROMPTS[1], top_p=0.9, history=(Message("user", "Hi"), Message("assistant", "Hello.")))
    await one(mock.url, Task(prompt, "math", "math"))
    body, sent = last(mock)
    assert body["model"] == MODEL
    assert body["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": PROMPTS[1].text},
    ]
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["stream"]) == (0.7, 0.9, 20, True)
    assert sent[headers.ARM] == "math"
    assert sent["authorization"] == "Bearer secret"


async def test_where_the_policy_chooses_no_arm_is_pinned(mock_engine: StartMock) -> None:
    mock = await mock_engine()
    result = await one(mock.url, Task(PROMPTS[0], None, "policy"))
    _, sent = last(mock)
    assert headers.ARM not in sent
    assert "authorization" not in sent
    assert (result.label, result.arm) == ("policy", "")


async def test_no_two_requests_share_a_prefix_cache(mock_engine: StartMock) -> None:
    mock = await mock_engine()
    salts = set()
    for _ in range(3):
        await one(mock.url)
        salts.add(last(mock)[0]["cache_salt"])
    assert len(salts) == 3


async def test_measurements_come_in_the_order_of_the_tasks(mock_engine: StartMock) -> None:
    mock = await mock_engine(FAST.model_copy(update={"step_s": 0.002, "jitter": 0.5}))
    tasks = pinned_tasks(PROMPTS, ARMS, seed=0)
    told: list[tuple[int, int]] = []
    found = await measure(mock.url, MODEL, tasks, concurrency=8, progress=lambda i, n, _: told.append((i, n)))
    assert [(m.prompt_id, m.label) for m in found] == [(t.prompt.id, t.label) for t in tasks]
    assert told == [(i, 40) for i in range(1, 41)]


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_no_more_requests_run_at_once_than_allowed(mock_engine: StartMock, concurrency: int) -> None:
    mock = await mock_engine(FAST.model_copy(update={"prefill_s": 0.01}))
    waiting_or_done: list[int] = []

    def progress(done: int, total: int, result: Measurement) -> None:
        waiting_or_done.append(mock.engine.started - done)

    await measure(mock.url, MODEL, pinned_tasks(PROMPTS[:3], ARMS, 0), concurrency=concurrency, progress=progress)
    assert max(waiting_or_done) <= concurrency - 1
    assert mock.engine.ended == {"finished": 12, "aborted": 0, "failed": 0}


async def test_collected_measurements_become_a_dataset(mock_engine: StartMock, tmp_path: Path) -> None:
    mock = await mock_engine(DRAFTS.model_copy(update={"step_s": 0.0, "prefill_s": 0.0}))
    save(tmp_path / "train.parquet", await measure(mock.url, MODEL, pinned_tasks(PROMPTS, ARMS, 0), concurrency=4))
    data = matrix(load(tmp_path / "train.parquet"), ARMS)
    assert data.prompt_ids == tuple(p.id for p in PROMPTS)
    assert data.dropped == {}
    assert (data.output_tokens == 20).all()
    assert (data.acceptance_length > 1).all()


async def test_the_name_of_the_target_is_asked_for(mock_engine: StartMock) -> None:
    assert await asyncio.to_thread(model_of, (await mock_engine()).url) == MODEL


# --- failures ---


@pytest.mark.parametrize(("share", "http_status"), [("fail_share", 500), ("refuse_share", 503)])
async def test_an_engine_that_fails_leaves_a_measurement(mock_engine: StartMock, share: str, http_status: int) -> None:
    mock = await mock_engine(FAST.model_copy(update={share: 1.0}))
    found = await measure(mock.url, MODEL, pinned_tasks(PROMPTS[:2], ARMS, 0))
    assert len(found) == 8
    assert {(m.outcome.status, m.outcome.http_status) for m in found} == {("engine_error", http_status)}
    assert {m.arm for m in found} == set(ARMS)
    with pytest.raises(DatasetError, match="'engine_error:plain': 2"):
        matrix(Dataset(tuple(found)), ARMS)


async def test_where_nobody_listens() -> None:
    outcome = (await one(REFUSING_URL)).outcome
    assert (outcome.status, outcome.http_status, outcome.e2e_s) == ("engine_error", None, None)


async def test_an_answer_that_is_no_stream_of_events_is_broken(mock_engine: StartMock) -> None:
    outcome = (await one((await mock_engine(FAST.model_copy(update={"garbage_share": 1.0}))).url)).outcome
    assert (outcome.status, outcome.http_status, outcome.ttft_s) == ("broken", 200, None)


async def test_an_answer_that_is_cut_is_broken(mock_engine: StartMock) -> None:
    outcome = (await one((await mock_engine(BREAKS)).url)).outcome
    assert (outcome.status, outcome.http_status) == ("broken", 200)


async def test_a_request_that_the_engine_refuses_is_a_client_error(mock_engine: StartMock) -> None:
    mock = await mock_engine()
    (result,) = await measure(mock.url, "another-model", [Task(PROMPTS[0], "plain", "plain")])
    assert (result.outcome.status, result.outcome.http_status) == ("client_error", 404)


async def test_some_failures_do_not_stop_the_others(mock_engine: StartMock) -> None:
    mock = await mock_engine(FAILS.model_copy(update={"fail_share": 0.5}))
    found = await measure(mock.url, MODEL, pinned_tasks(PROMPTS, ARMS, 0), concurrency=4)
    failed = sum(m.outcome.status == "engine_error" for m in found)
    assert len(found) == 40
    assert failed == mock.engine.ended["failed"]
    assert 0 < failed < 40
