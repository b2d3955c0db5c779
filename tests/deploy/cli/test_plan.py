"""`draftpick simulate` and `draftpick plan` as users call them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from draftpick.deploy.cli import main as cli
from draftpick.deploy.cli.plan import pool_verdict
from draftpick.engines.errors import ConfigError
from draftpick.engines.profile.profile import Profile, ProfileError
from draftpick.policy_training.data.dataset import Measurement, save
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.router.records import encode
from draftpick.router.types import Outcome
from tests.deploy.cli.test_main import invoke, words
from tests.policy_training.bandit import ARMS
from tests.policy_training.data.test_from_records import record
from tests.policy_training.simulated import profile


def save_profile(folder: Path, name: str, made: Profile) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(made.as_json()))


@pytest.fixture
def profiles(tmp_path: Path) -> str:
    folder = tmp_path / "profiles"
    for name, step_s, rise in (("plain", 0.010, 0.0005), ("suffix", 0.011, 0.002), ("math", 0.012, 0.003)):
        save_profile(folder, name, profile(step_s, rise))
    return str(folder)


def ran(*arguments: str) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result


def test_simulate_compares_strategies_with_single_engines(profiles: str, tmp_path: Path) -> None:
    common = (
        "--profiles",
        profiles,
        "--traffic",
        "six_kinds",
        "--fleet",
        "suffix=2,math=1",
        "-n",
        "300",
        "--rate",
        "5",
    )
    plot = tmp_path / "latency.png"
    told = json.loads(ran("simulate", *common, "--seeds", "2", "--json", "--plot", str(plot)).stdout)
    assert told["fleet"] == {"suffix": 2, "math": 1}
    assert told["accelerators"] == 3
    names = ("throughput", "text", "least_loaded", "oracle", "[math]", "[plain]", "[suffix]")
    assert list(told["runs"]) == list(names)
    assert all(run["latency_s/mean"]["value"] > 0 for run in told["runs"].values())
    assert plot.stat().st_size > 1000
    text = words(ran("simulate", *common, "--seeds", "1").stdout)
    assert all(name in text for name in names)


def test_plan_says_what_to_run(profiles: str, tmp_path: Path) -> None:
    common = ("--profiles", profiles, "--traffic", "six_kinds", "-a", "4", "-n", "300", "--rate", "6", "--seeds", "2")
    plot = tmp_path / "plan.png"
    told = json.loads(ran("plan", *common, "--json", "--limit", "1000", "--plot", str(plot)).stdout)
    assert 1 <= sum(told["replicas"].values()) <= 4
    assert told["chosen"] in (told["replicas"], told["single"])
    assert told["within_limit"] is True
    assert plot.stat().st_size > 1000
    text = words(ran("plan", *common, "--limit", "0.001").stdout)
    assert "run " in text
    assert "does not stay below 0.001 s" in text


def test_tensor_parallel_engines_need_several_accelerators(profiles: str) -> None:
    common = ("--profiles", profiles, "--traffic", "six_kinds", "-n", "200", "--rate", "5", "--seeds", "2")
    told = json.loads(
        ran(
            "plan",
            *common,
            "-a",
            "3",
            "--replica-accelerators",
            "suffix=2",
            "--replica-accelerators",
            "math=3",
            "--json",
        ).stdout
    )
    needs = {"plain": 1, "suffix": 2, "math": 3}
    assert sum(needs[name] * count for name, count in told["replicas"].items()) <= 3


def test_requests_of_a_dataset_and_of_records(profiles: str, tmp_path: Path) -> None:
    cells = [
        Measurement(
            f"math-{n}", "math", arm, arm, 0.0, 64, source="replay",
            outcome=Outcome("ok", 200, prompt_tokens=20, output_tokens=50, acceptance_length=tau + n % 2),
        )
        for n in range(20) for arm, tau in (("plain", 1.0), ("suffix", 2.0), ("math", 3.0))
    ]  # fmt: skip
    save(tmp_path / "data.parquet", cells)
    fleet = ("simulate", "--fleet", "suffix=1,math=1", "-n", "100", "--seeds", "1", "--json")
    data = json.loads(ran(*fleet, "--profiles", profiles, "--data", str(tmp_path / "data.parquet")).stdout)
    assert data["runs"]["throughput"]["share/math"]["value"] > 0.5
    records, folder = tmp_path / "records", tmp_path / "four"
    records.mkdir()
    made = [record(n) for n in range(200)]
    made = [replace(one, outcome=replace(one.outcome, e2e_s=0.2)) for one in made]
    (records / "records-1.jsonl").write_bytes(b"".join(map(encode, made)))
    for name in ARMS:
        save_profile(folder, name, profile())
    told = json.loads(
        ran("simulate", "--fleet", "suffix=1,math=1", "--seeds", "1", "--json", "--profiles", str(folder),
            "--records", str(records), "--rate", "2").stdout
    )  # fmt: skip
    assert told["runs"]["throughput"]["requests_per_s"]["value"] == pytest.approx(2.0, rel=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fleet", "suffix"), "ENGINE=NUMBER"),
        (("--fleet", "suffix=0"), "1 or more"),
        (("--fleet", "suffix=1", "--data", "x"), "give one of"),
        (("--fleet", "suffix=1", "--replica-accelerators", "eagle=2"), "no profile of eagle"),
    ],
)
def test_wrong_usage_is_an_error_of_the_configuration(profiles: str, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(
            cli.app, ["simulate", "--profiles", profiles, "--traffic", "six_kinds", *arguments], catch_exceptions=False
        )


def test_a_file_that_is_no_profile_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{}")
    result = invoke("simulate", "--profiles", str(tmp_path), "--traffic", "six_kinds", "--fleet", "broken=1")
    assert isinstance(result.exception, ProfileError)
    assert "broken.json" in str(result.exception)


def test_help_teaches() -> None:
    assert "Example:" in words(invoke("simulate", "--help").stdout)
    assert "Recommends the single engine unless" in words(invoke("plan", "--help").stdout)


def test_a_pool_of_the_engines_drafters_is_considered(profiles: str) -> None:
    common = ("--profiles", profiles, "--traffic", "six_kinds", "-n", "200", "--rate", "5", "--seeds", "6")
    pool = ("--pool", "all=plain+suffix+math")
    told = json.loads(ran("plan", *common, "-a", "2", *pool, "--json").stdout)
    assert told["chosen"] == told["pool"] == {"all": 2}
    assert "all" not in told["single"]
    assert "a pool wins here: 2 all is" in words(ran("plan", *common, "-a", "2", *pool).stdout)
    alone = ran("plan", *common, "-a", "2").stdout
    assert "pool" not in alone
    wrong = invoke("plan", *common, "-a", "2", "--pool", "all=plain+maths")
    assert isinstance(wrong.exception, ConfigError)
    assert "engines with a profile: math, plain, suffix" in str(wrong.exception)


def test_the_profile_of_a_pool_holds_those_of_its_drafters(tmp_path: Path) -> None:
    folder = tmp_path / "profiles"
    save_profile(folder, "pool", replace(profile(0.010, 0.0005), drafter_s={"suffix": 0.001, "math": 0.002}))
    common = ("--profiles", str(folder), "--traffic", "six_kinds", "-n", "200", "--seeds", "2")
    told = json.loads(ran("simulate", *common, "--fleet", "pool=2", "--json").stdout)
    assert told["runs"]["throughput"]["share/pool"]["value"] == 1.0


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.02, 1.1, "a pool wins here"),
        (0.9, 0.97, "a single engine wins here"),
        (0.98, 1.03, "neither a pool nor a single engine wins"),
    ],
)
def test_a_plan_says_whether_pools_win(low: float, high: float, verdict: str) -> None:
    text = pool_verdict("2 pool", "2 suffix", Interval((low + high) / 2, low, high))
    assert text.startswith(f"{verdict}: 2 pool is ")
    assert text.endswith(" times as fast as 2 suffix")
