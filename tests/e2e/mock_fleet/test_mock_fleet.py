"""Real Ray Serve, mock engines, real HTTP, the `openai` client."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import ray
from ray import serve

from draftpick.deploy.app import APP_NAME
from draftpick.policy_training.data.contexts import contexts
from draftpick.policy_training.data.dataset import Dataset, Measurement
from draftpick.policy_training.data.matrix import matrix
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.learners import learner
from draftpick.policy_training.learners.base import LearnerSetting
from draftpick.policy_training.train import train_policy
from draftpick.policy_training.workloads import generate
from draftpick.router import records
from draftpick.router.features.featurizer import LexicalFeaturizer
from draftpick.router.types import Outcome
from tests.e2e.conftest import eventually, fleet, recorded
from tests.e2e.mock_fleet.conftest import counted, mock_state

pytestmark = pytest.mark.ray
CHAT = "/v1/chat/completions"


def body(text: str = "hello", **more: object) -> dict[str, object]:
    return {"model": "mock-model", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}


@pytest.fixture
def client(mock_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{mock_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_ready_names_every_engine(mock_url: str) -> None:
    state = httpx.get(f"{mock_url}/ready").json()
    assert state["ready"]
    assert state["engines"] == {"plain": 1, "ngram": 1, "suffix": 1, "math": 1}


def test_openai_client_lists_models_and_chats(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["mock-model"]
    answer = client.chat.completions.create(
        model="mock-model", messages=[{"role": "user", "content": "hi"}], max_tokens=5
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_openai_client_streams(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="mock-model", messages=[{"role": "user", "content": "hi"}], max_tokens=5, stream=True
    ) as stream:
        chunks = list(stream)
    assert all(chunk.usage is None for chunk in chunks)
    assert "".join(c.choices[0].delta.content or "" for c in chunks)


def test_a_pinned_engine_answers_and_says_so(mock_url: str) -> None:
    for arm in ("plain", "ngram", "suffix", "math"):
        answer = httpx.post(mock_url + CHAT, json=body(), headers={"x-draftpick-arm": arm})
        assert answer.headers["x-draftpick-arm"] == arm
        assert answer.headers["x-draftpick-request-id"]


@pytest.mark.parametrize("sent", [{}, {"x-request-id": "mine-1"}])
def test_an_answer_has_one_request_id(mock_url: str, sent: dict[str, str]) -> None:
    for fields in (body(), {"messages": 3}):
        answer = httpx.post(mock_url + CHAT, json=fields, headers=sent)
        given = answer.headers.get_list("x-request-id")
        assert given == [sent.get("x-request-id", answer.headers["x-draftpick-request-id"])]


def test_handle_chooses_without_sending_and_sends(mock_url: str) -> None:
    handle = serve.get_deployment_handle("router", APP_NAME)
    before = counted(mock_url, "started")
    choice = handle.choose.remote(body()).result()
    assert sum(choice["probabilities"].values()) == pytest.approx(1.0)
    assert counted(mock_url, "started") == before
    answer = handle.send.remote(body(), arm="math").result()
    assert answer["status"] == 200
    assert answer["headers"]["x-draftpick-arm"] == "math"
    streamed = b"".join(handle.options(stream=True).stream.remote(body()))
    assert streamed.endswith(b"data: [DONE]\n\n")


def test_each_request_leaves_one_record(mock_url: str, records_dir: Path) -> None:
    ids = [f"record-{i}" for i in range(5)]
    for i in ids:
        httpx.post(mock_url + CHAT, json=body(), headers={"x-request-id": i})
    found = recorded(records_dir, *ids)
    assert sorted(str(r.client_request_id) for r in found) == ids
    assert all(r.outcome.status == "ok" and r.decision.propensity == 0.25 for r in found)
    assert all(r.context is not None for r in found)


def test_a_disconnect_stops_the_engine(mock_url: str, records_dir: Path) -> None:
    before = mock_state(mock_url, "plain")["aborted"]
    headers = {"x-draftpick-arm": "plain", "x-request-id": "gone"}
    with httpx.stream("POST", mock_url + CHAT, json=body(max_tokens=2000, stream=True), headers=headers) as answer:
        next(answer.iter_bytes())
    assert eventually(lambda: not mock_state(mock_url, "plain")["running"])
    assert mock_state(mock_url, "plain")["aborted"] == before + 1
    assert [record.outcome.status for record in recorded(records_dir, "gone")] == ["cancelled"]


def test_a_killed_replica_is_replaced_and_no_request_fails(mock_url: str) -> None:
    (replica,) = [p for p in psutil.Process().children(recursive=True) if "engine-ngram" in " ".join(p.cmdline())]
    replica.kill()
    assert all(httpx.post(mock_url + CHAT, json=body()).status_code == 200 for _ in range(20))
    deadline, pinned = time.monotonic() + 90, {"x-draftpick-arm": "ngram"}
    while (answer := httpx.post(mock_url + CHAT, json=body(), headers=pinned)).status_code == 503:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.5)
    assert answer.status_code == 200


def test_the_router_learns_from_its_own_records_without_a_restart(
    mock_url: str, records_dir: Path, tmp_path: Path
) -> None:
    """What a user does: `draftpick train --records`, then `draftpick policies activate`."""
    with httpx.Client(base_url=mock_url) as client:
        assert all(client.post(CHAT, json=body(f"tell me of {i}")).status_code == 200 for i in range(160))
    assert eventually(lambda: sum(r.path == CHAT for r in records.read(records_dir)) >= 160)
    policy, before = tmp_path / "policy", httpx.get(f"{mock_url}/ready").json()["policy"]
    trained = _draftpick("train", "--records", str(records_dir), "--output-dir", str(policy), "--learner", "ridge")
    assert trained["records"] >= 160
    assert trained["arms"] == ["math", "ngram", "plain", "suffix"]
    assert set(trained["estimated_tpot_ms"]) >= {"ips", "snips", "dm", "dr"}
    used = _draftpick("policies", "activate", str(policy), "--ray-address", ray.get_runtime_context().gcs_address)
    first, second = used["policies"]  # of each router
    answer = httpx.post(mock_url + CHAT, json=body())
    assert answer.headers["x-draftpick-policy"] == first == second != before


def test_a_new_policy_serves_without_restart_and_a_bad_one_is_refused(mock_url: str, tmp_path: Path) -> None:
    arms = fleet("mock", tmp_path).arms
    policy = tmp_path / "policy"
    _train_always("math", arms, policy)
    handle = serve.get_deployment_handle("router", APP_NAME)
    (taken,) = set(handle.broadcast("use_policy", str(policy)).results(timeout_s=30))
    answer = httpx.post(mock_url + CHAT, json=body())
    assert answer.headers["x-draftpick-policy"] == taken
    assert answer.headers["x-draftpick-arm"] == "math"
    (policy / "arrays.safetensors").write_bytes(b"broken")
    with pytest.raises(Exception, match="sha256"):
        handle.broadcast("use_policy", str(policy)).results(timeout_s=30)
    assert httpx.post(mock_url + CHAT, json=body()).headers["x-draftpick-policy"] == taken


def _draftpick(*arguments: str) -> dict[str, Any]:
    """What a command says with `--json`, run as a program of its own."""
    run = subprocess.run(
        [sys.executable, "-m", "draftpick", *arguments, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return dict(json.loads(run.stdout.splitlines()[-1]))


def _train_always(arm: str, arms: tuple[str, ...], out: Path) -> None:
    """A policy trained on measurements in which one arm is always the fastest."""
    prompts, featurizer = generate(30, seed=3), LexicalFeaturizer()
    taus = {name: 3.0 if name == arm else 1.0 for name in arms}
    measured = tuple(
        Measurement.from_prompt(
            p, name, name, Outcome("ok", 200, 0.1, 0.03 / tau, output_tokens=10, acceptance_length=tau)
        )
        for p in prompts
        for name, tau in taus.items()
    )
    data = Dataset(measured, contexts([featurizer], prompts))
    made = matrix(data, arms, featurizer=featurizer.id)
    train_policy(made, learner("tau_cost"), LearnerSetting("plain", Costs.fit(data, arms)), out, {})
