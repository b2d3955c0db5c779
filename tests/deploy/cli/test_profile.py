"""`draftpick profile`: which engines are measured, what is kept, and what is said of wrong words."""

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from draftpick.deploy.cli import main as cli
from draftpick.deploy.cli.profile import _numbers
from draftpick.deploy.workflows.profile import Subject, subjects
from draftpick.engines.config import Engine
from draftpick.engines.errors import ConfigError
from draftpick.engines.http.server import LocalServer
from draftpick.engines.mock.app import MockSpec, mock_app
from draftpick.engines.profile import cache as profile_cache
from draftpick.engines.profile.measure import ProfilePlan
from draftpick.engines.profile.profile import Profile, ProfileError
from draftpick.router.config.router_config import DraftpickConfig, load_config
from tests.deploy.cli.test_main import words

SPEC = MockSpec(step_s=0.01, step_s_per_request=0.002, max_running=8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRAFTPICK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "profiles"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command measures takes seconds."""
    plan = partial(ProfilePlan, steps=5, min_prompts=1, prefills=1, prefill_tokens=(16, 64))
    monkeypatch.setattr("draftpick.engines.profile.measure.ProfilePlan", plan)


@pytest.fixture
def url() -> Iterator[str]:
    """A mock engine in a loop of its own, since the command has one, too."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    server = LocalServer(mock_app(SPEC, model="m"))

    async def serve() -> None:
        await server.start()
        started.set()

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(serve(), loop)
    started.wait(5)
    yield server.url
    asyncio.run_coroutine_threadsafe(server.drain(1), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def fleet() -> DraftpickConfig:
    engines = [{"name": "plain", "kind": "mock", "mock": {}}, {"name": "far", "url": "http://10.0.0.7:8000"}]
    router = {"policy": "uniform", "default_engine": "plain"}
    return load_config({"target": {"name": "m"}, "engines": engines, "router": router})


def test_a_running_engine_is_measured_kept_and_shown(url: str, cache: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "plots" / "steps.png"
    asked = ["profile", "--url", f"here={url}", "--batch-sizes", "2,4", "--context-lengths", "30", "--json"]
    run = CliRunner().invoke(cli.app, [*asked, "--output-dir", str(tmp_path / "out"), "--plot", str(drawn)])
    assert run.exit_code == 0, run.output
    said = json.loads(run.stdout)
    profile = Profile.from_json(json.dumps(said["profiles"]["here"]))
    assert profile.batches == (1, 2, 4)
    assert profile.step(4) == pytest.approx(SPEC.mean_step_s(4), rel=0.25)
    assert Profile.from_json((tmp_path / "out" / "here.json").read_bytes()) == profile
    assert drawn.read_bytes().startswith(b"\x89PNG")
    if "here" in said["kept"]:  # unless this machine was busy
        assert profile_cache.read(SPEC.identity()) == profile


def test_a_table_for_people(url: str) -> None:
    run = CliRunner().invoke(
        cli.app,
        ["profile", "--url", f"here={url}", "--batch-sizes", "1,2", "--context-lengths", "30"],
        env={"COLUMNS": "120"},
    )
    assert run.exit_code == 0, run.output
    assert "ms per step" in words(run.stdout)
    assert "at most 8 concurrent requests" in words(run.stdout)


def test_what_a_busy_machine_gave_is_not_kept(
    url: str, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("draftpick.engines.profile.keeper.MAX_DISAGREEMENT", -1.0)
    with caplog.at_level(logging.ERROR):
        run = CliRunner().invoke(
            cli.app, ["profile", "--url", f"here={url}", "--batch-sizes", "1", "--context-lengths", "20", "--json"]
        )
    assert json.loads(run.stdout)["kept"] == {}
    assert "profile of here discarded" in words(run.stderr)
    assert not cache.exists()


def test_engines_are_measured_where_they_run_or_started_alone() -> None:
    plain, far = subjects(fleet(), [], [])
    assert far == Subject("far", "http://10.0.0.7:8000/")
    assert (plain.name, plain.url) == ("plain", None)
    assert plain.fleet is not None
    assert plain.fleet.arms == ("plain",)
    assert plain.fleet.router.default_engine == "plain"
    (engine,) = plain.fleet.engines
    assert (engine.deployment.num_replicas, engine.deployment.profile) == (1, "off")


def test_names_choose_and_addresses_replace_and_add() -> None:
    assert [one.name for one in subjects(fleet(), ["far"], [])] == ["far"]
    assert subjects(fleet(), ["plain"], ["plain=http://a"]) == [Subject("plain", "http://a")]
    assert [one.name for one in subjects(fleet(), ["plain"], ["other=http://a"])] == ["plain", "other"]
    assert subjects(None, [], ["x=http://a"]) == [Subject("x", "http://a")]


@pytest.mark.parametrize(
    ("of", "names", "urls", "problem"),
    [
        (None, [], [], "config: nothing to measure"),
        (None, ["plain"], ["x=http://a"], "--engine: needs a fleet"),
        (fleet(), ["plian"], [], "did you mean 'plain'"),
        (None, [], ["http://a"], "is not NAME=URL"),
        (None, [], ["x=ftp://a"], "is not NAME=URL"),
    ],
)
def test_wrong_words(of: DraftpickConfig | None, names: list[str], urls: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        subjects(of, names, urls)
    assert problem in str(error.value)
    assert error.value.fix


@pytest.mark.parametrize("text", ["", "a", "0,1", "1;2", "-1", "1.5"])
def test_lists_of_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match="--batch-sizes"):
        _numbers("--batch-sizes", text)
    assert _numbers("--batch-sizes", "8, 1,2,2") == (1, 2, 8)


def test_an_engine_that_is_not_there_is_named() -> None:
    run = CliRunner().invoke(cli.app, ["profile", "--url", "gone=http://127.0.0.1:9"])
    assert isinstance(run.exception, ProfileError)
    assert "engine gone at http://127.0.0.1:9: connection refused" in str(run.exception)


def test_an_engine_measures_itself_unless_it_is_told_not_to() -> None:
    assert Engine(name="a").deployment.profile == "auto"
    assert Engine.model_validate({"name": "a", "deployment": {"profile": "off"}}).deployment.profile == "off"
