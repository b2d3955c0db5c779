"""The examples that call a router, by handle and by URL, against the mock fleet on real Ray Serve."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import ray
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from draftpick.deploy.app import APP_NAME
from draftpick.deploy.examples import summaries
from draftpick.deploy.examples.ask import Client, RequestRejected
from draftpick.deploy.examples.ask import _pieces as pieces_of
from tests.e2e.conftest import eventually
from tests.e2e.mock_fleet.conftest import ARMS, counted, mock_state

pytestmark = pytest.mark.ray
DOCUMENT = {"text": "Draft tokens are guessed, then checked by the target all at once."}


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """An example, run as its first lines say."""
    command = [sys.executable, "-m", f"draftpick.deploy.examples.{module}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "mock-model", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, **more}


@pytest.fixture
def slow(mock_url: str) -> Iterator[None]:
    """Engines whose answers last for seconds."""
    steps = {arm: mock_state(mock_url, arm)["spec"]["step_s"] for arm in ARMS}
    for arm in ARMS:
        mock_state(mock_url, arm, step_s=0.1)
    yield
    for arm in ARMS:
        mock_state(mock_url, arm, step_s=steps[arm])


@pytest.fixture
def full(mock_url: str, slow: None) -> Iterator[None]:
    """Two routers whose only places are taken."""
    router = serve.get_deployment_handle("router", APP_NAME)
    router.broadcast("reconfigure", {"admission": {"max_in_flight": 1, "max_queued": 0}}).results(timeout_s=30)
    held: list[Iterator[bytes]] = []  # a generator that nobody holds would close its stream
    with ExitStack() as streams:
        while len(held) < 2:
            body = asked(stream=True, max_tokens=100)
            answer = streams.enter_context(httpx.stream("POST", f"{mock_url}/v1/chat/completions", json=body))
            if answer.status_code == 200:
                held.append(answer.iter_bytes())
                next(held[-1])
        yield
    router.broadcast("reconfigure", {"admission": {}}).results(timeout_s=30)


# --- by URL ---


@pytest.fixture
def client(mock_url: str) -> Iterator[Client]:
    client = Client(mock_url, priority="low", timeout_s=20)
    yield client
    client.close()


def test_ask_prints_the_answer_and_who_gave_it(mock_url: str) -> None:
    for more in ([], ["--stream", "--priority", "low", "--timeout", "20"]):
        done = run("ask", "What is 12 * 7?", "--url", mock_url, "--max-tokens", "8", *more)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        assert done.stderr.split(",")[0] in {f"by {arm}" for arm in ARMS}
        assert "chosen by uniform" in done.stderr


def test_ask_says_what_the_turn_of_a_session_found(mock_url: str) -> None:
    turns = [run("ask", "And then?", "--url", mock_url, "--session", "story-1") for _ in range(2)]
    assert [done.returncode for done in turns] == [0, 0], turns[-1].stderr
    assert turns[0].stderr.strip().endswith(", session new")
    malformed = run("ask", "And then?", "--url", mock_url, "--session", "a story")
    assert (malformed.returncode, "400 invalid_request_error" in malformed.stderr) == (1, True)


def test_ask_says_what_was_refused(mock_url: str) -> None:
    done = run("ask", "hello", "--url", mock_url, "--timeout", "0.000001")
    assert (done.returncode, done.stdout) == (1, "")
    assert "504 timeout_error" in done.stderr
    nobody = run("ask", "hello", "--url", "http://127.0.0.1:9")
    assert (nobody.returncode, nobody.stdout, "refused" in nobody.stderr) == (1, "", True)


def test_answers_and_streams_say_where_they_come_from(client: Client) -> None:
    source, text = client.ask(asked())
    with client.stream(asked()) as (streaming, pieces):
        streamed = "".join(pieces)
    assert client.model() == "mock-model"
    assert {source.arm, streaming.arm} <= ARMS
    assert source.request_id != streaming.request_id
    assert text
    assert streamed


def test_to_leave_a_stream_stops_the_engine(client: Client, mock_url: str, slow: None) -> None:
    before = counted(mock_url, "aborted")
    with client.stream(asked(max_tokens=32)) as (_, pieces):
        next(pieces)
    assert eventually(lambda: counted(mock_url, "aborted") == before + 1)


def test_errors_of_engine_and_router_look_alike(client: Client, mock_url: str) -> None:
    with pytest.raises(RequestRejected, match="404 NotFoundError"):
        client.ask(asked(model="nobody"))
    hasty = Client(mock_url, priority="urgent")
    with pytest.raises(RequestRejected, match="400 invalid_request_error") as refused, hasty.stream(asked()):
        pass
    hasty.close()
    assert (refused.value.code, refused.value.retry_after_s) == ("bad_priority", None)


def test_who_is_told_to_come_again_comes_again(client: Client, mock_url: str, full: None) -> None:
    began = time.monotonic()
    with pytest.raises(RequestRejected, match="503") as refused:
        client.ask(asked(), tries=2)
    assert (refused.value.code, refused.value.retry_after_s) == ("overloaded", 1.0)
    assert time.monotonic() - began >= 1.0


def test_a_text_with_line_separators_stays_whole() -> None:
    event = 'data: {"choices": [{"delta": {"content": "a\u2028b"}}]}\n\n'
    assert list(pieces_of(iter([event[:9], event[9:] + "data: [DO", "NE]\n\n"]))) == ["a\u2028b"]
    with pytest.raises(RequestRejected, match="stopped"):
        list(pieces_of(iter([event, 'data: {"error": {"message": "the engine stopped"}}\n\n'])))


# --- by handle ---


@pytest.fixture(scope="module")
def url(mock_url: str) -> str:
    """Where the summaries are."""
    address = ray.get_runtime_context().gcs_address
    done = run("summaries", "--model", "mock-model", "--ray-address", address)
    assert done.returncode == 0, done.stderr
    # HAProxy learns of new applications once a second.
    assert eventually(lambda: httpx.get(f"{mock_url}/summaries/openapi.json").status_code == 200)
    return f"{mock_url}/summaries"


def test_a_deployment_gets_answers_by_handle(url: str) -> None:
    summary = httpx.post(f"{url}/", json=DOCUMENT, timeout=30).json()
    assert summary["engine"] in ARMS
    assert summary["text"]


def test_a_deployment_streams_by_handle(url: str) -> None:
    with httpx.stream("POST", f"{url}/stream", json=DOCUMENT, timeout=30) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


def test_a_deployment_asks_for_a_choice_by_handle_and_nothing_is_sent(url: str, mock_url: str) -> None:
    before = counted(mock_url, "started")
    choice = httpx.post(f"{url}/engine", json=DOCUMENT, timeout=30).json()
    assert choice["arm"] in ARMS
    assert sum(choice["probabilities"].values()) == pytest.approx(1.0)
    assert choice["policy"] == "uniform"
    assert counted(mock_url, "started") == before


def test_who_leaves_a_stream_of_the_deployment_stops_the_engine(url: str, mock_url: str, slow: None) -> None:
    before = counted(mock_url, "aborted")
    with httpx.stream("POST", f"{url}/stream", json=DOCUMENT, timeout=30) as answer:
        next(answer.iter_bytes())
    assert eventually(lambda: counted(mock_url, "aborted") == before + 1)


@pytest.mark.parametrize("path", ["/", "/stream"])
def test_an_error_of_the_router_keeps_its_status_on_its_way_through_the_handle(url: str, full: None, path: str) -> None:
    answer = httpx.post(f"{url}{path}", json=DOCUMENT, timeout=30)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "overloaded"


def test_an_engine_s_own_error_passes_through(url: str) -> None:
    address = ray.get_runtime_context().gcs_address
    assert run("summaries", "--model", "nobody", "--ray-address", address).returncode == 0
    assert eventually(lambda: httpx.post(f"{url}/", json=DOCUMENT, timeout=30).status_code == 404)
    streamed = httpx.post(f"{url}/stream", json=DOCUMENT, timeout=30)
    assert (streamed.status_code, streamed.json()["error"]["type"]) == (502, "NotFoundError")


def test_the_entry_for_a_config_file_is_what_serve_takes() -> None:
    """What the example says of `serve deploy`."""
    assert summaries.__doc__ is not None
    entry = summaries.__doc__[summaries.__doc__.index("- {") :].strip()
    (application,) = ServeDeploySchema.model_validate({"applications": yaml.safe_load(entry)}).applications
    module, name = application.import_path.split(":")
    assert (module, getattr(summaries, name)) == (summaries.__name__, summaries.build)
    assert isinstance(summaries.build(application.args), serve.Application)
    assert application.route_prefix == summaries.PREFIX
