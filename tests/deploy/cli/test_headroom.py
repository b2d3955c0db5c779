"""`draftpick headroom`: a verdict on records, datasets and prompts, for people and for programs."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from draftpick.deploy.cli import main as cli
from draftpick.engines.errors import ConfigError
from draftpick.policy_training.data.dataset import DatasetError, Measurement, Source, save
from draftpick.policy_training.data.matrix import Matrix
from draftpick.router.records import encode
from draftpick.router.types import Outcome, Record
from tests.deploy.doctor.ward import fleet
from tests.policy_training.bandit import ARMS, COSTS
from tests.policy_training.headroom.test_headroom import drawn, profile
from tests.policy_training.headroom.test_headroom_records import log


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["headroom", *arguments], env={"COLUMNS": "160", "TERM": "dumb"})


@pytest.mark.parametrize(
    "arguments",
    [
        ("mock",),
        ("mock", "--records", "x", "--data", "y"),
        ("mock", "--records", "x", "--rate", "3"),
        ("mock", "--records", "x", "--url", "plain=http://127.0.0.1:9"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert isinstance(result.exception, ConfigError) or result.exit_code == 2


def judged(*arguments: str) -> dict[str, Any]:
    """What `draftpick headroom` prints for a program."""
    result = invoke("--learner", "ridge", "--json", *arguments)
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
    assert judged("--records", poor)["verdict"] == "not worth it"


def test_what_people_are_shown(tmp_path: Path) -> None:
    folder = stored(tmp_path / "records", log(drawn(600, 1, room=0.8), shadows=3))
    result = invoke("--learner", "ridge", "--records", folder)
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
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump(fleet(tmp_path, *engines)))
    assert judged(str(path))["verdict"] == "worth it"
    assert judged("--records", f"file://{folder}", "--min-gain", "0.9")["verdict"] == "not worth it"


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
    alone = invoke("--data", str(replayed))
    assert isinstance(alone.exception, DatasetError)
    assert "set --profiles FOLDER" in str(alone.exception)
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
    missing = invoke("--data", str(replayed), "--profiles", str(folder))
    assert "no profile of math" in str(missing.exception)


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "is not readable"), (b"", "no usable record"), (b"\x00\xff\n", "no usable record")]
)
def test_damaged_and_empty_records(tmp_path: Path, content: bytes | None, problem: str) -> None:
    folder = tmp_path / "records"
    if content is not None:
        folder.mkdir()
        (folder / "records-1.jsonl").write_bytes(content)
    result = invoke("--records", str(folder))
    assert isinstance(result.exception, DatasetError)
    assert problem in str(result.exception)


def test_an_unknown_learner_lists_them(tmp_path: Path) -> None:
    result = invoke("--records", str(tmp_path), "--learner", "tau_csot")
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
        "headroom",
        "embedded",
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
        "--output-dir",
        str(tmp_path / "x"),
    ]
    run = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["found"]["gain"]["n"] == 52
    assert found["verdict"] in ("worth it", "not worth it", "cannot tell")
    assert "when the policy 'embedded' was trained" in found["source"]
