"""The command line: help for every command, what is printed, and exit codes."""

import json
import logging
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import typer
import yaml
from click.testing import Result
from typer.testing import CliRunner

from draftpick.deploy.cli import main as cli
from draftpick.deploy.console import load_prompts
from draftpick.deploy.workflows import featurizers as features
from draftpick.deploy.workflows.results import write
from draftpick.engines.errors import ConfigError
from draftpick.policy_training.data.contexts import contexts
from draftpick.policy_training.data.data_card import save_prompt_cards
from draftpick.policy_training.data.dataset import DatasetError, Measurement, load, save
from draftpick.policy_training.data.text_similarity import STATISTICS
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.workloads import Prompt, generate, read_file
from draftpick.policy_training.workloads.card import prompt_card
from draftpick.router.features.featurizer import LexicalFeaturizer
from draftpick.router.types import Outcome
from tests.deploy.artefact import write_policy

MOCK = {"kind": "mock"}
FLEET: dict[str, Any] = {
    "target": {"name": "m"},
    "engines": [{"name": "plain", **MOCK}, {"name": "ngram", **MOCK}],
    "router": {"default_engine": "plain"},
}
ROOT = Path(__file__).parents[3]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})


def words(text: str) -> str:
    """Text as one line without colours, however wide the terminal."""
    return " ".join(click.unstyle(text).split())


def fleet_file(folder: Path, **changes: Any) -> str:
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump({**FLEET, **changes}))
    return str(path)


def draftpick(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    command = [sys.executable, "-m", "draftpick", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


# --- help ---


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its path."""

    def walk(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk((*path, name), inner)
        if not hasattr(command, "commands"):
            yield path, command

    return walk((), typer.main.get_command(cli.app))


COMMANDS = dict(commands())


def test_commands() -> None:
    assert {" ".join(path) for path in COMMANDS} >= {
        *("serve", "check-config", "models", "collect", "train", "evaluate", "demo"),
        *(f"drafters {name}" for name in ("benchmark", "replay", "corpus", "distill", "eagle", "losses", "layer-skip")),
    }


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help(path: tuple[str, ...]) -> None:
    result = invoke(*path, "--help")
    shown = words(result.stdout)
    assert result.exit_code == 0
    assert f"Usage: draftpick {' '.join(path)}" in shown
    for option in COMMANDS[path].params:
        assert option.help, f"{option.name} has no help"
        assert max(option.opts, key=len).upper() in shown.upper()


# --- check-config ---


def test_a_valid_configuration(tmp_path: Path) -> None:
    result = invoke("check-config", fleet_file(tmp_path))
    assert result.exit_code == 0
    assert words(result.stdout) == "valid: target m, engines plain, ngram"
    assert result.stderr == ""


def test_a_fleet_by_its_name() -> None:
    result = invoke("check-config", "mock")
    assert result.exit_code == 0
    assert "engines plain, ngram, suffix, math" in words(result.stdout)


def test_a_valid_configuration_as_json(tmp_path: Path) -> None:
    result = invoke("check-config", fleet_file(tmp_path), "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (found["valid"], found["warnings"]) == (True, [])
    assert [engine["name"] for engine in found["config"]["engines"]] == ["plain", "ngram"]


def test_an_invalid_configuration_as_json(tmp_path: Path) -> None:
    result = invoke("check-config", fleet_file(tmp_path, rooter={}, engines=[]), "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 2
    assert found["valid"] is False
    assert [problem.split(":")[0] for problem in found["problems"]] == ["engines", "rooter"]


def test_a_drafting_method_that_may_be_misspelt_is_a_warning(tmp_path: Path) -> None:
    engine = {"name": "far", "url": "http://127.0.0.1:9", "drafter": {"method": "ngrm"}}
    path = fleet_file(tmp_path, engines=[engine], router={"default_engine": "far"})
    text, as_json = invoke("check-config", path), invoke("check-config", path, "--json")
    assert (text.exit_code, as_json.exit_code) == (0, 0)
    assert "warning: engines.0.drafter.method: unknown method 'ngrm'" in words(text.stderr)
    assert "did you mean 'ngram'" in json.loads(as_json.stdout)["warnings"][0]


def test_a_policy_for_other_engines_is_a_warning(tmp_path: Path) -> None:
    policy = str(write_policy(tmp_path / "policy", ["plain", "math"]))
    path = fleet_file(tmp_path, router={"default_engine": "plain", "policy": policy})
    text, as_json = invoke("check-config", path), invoke("check-config", path, "--json")
    assert (text.exit_code, as_json.exit_code) == (0, 0)
    assert "warning: policy mlp:" in words(text.stderr)
    assert "was made for the engines ['plain', 'math']" in json.loads(as_json.stdout)["warnings"][0]


def test_a_file_that_names_a_policy_is_an_error_with_its_fix(tmp_path: Path) -> None:
    (tmp_path / "active").write_text("uniform")
    path = fleet_file(tmp_path, router={"default_engine": "plain", "policy": str(tmp_path / "active")})
    result = invoke("check-config", path)
    assert isinstance(result.exception, ConfigError)
    assert "draftpick policies activate FOLDER --registry REGISTRY" in str(result.exception)


def test_a_former_field_is_a_warning(tmp_path: Path) -> None:
    path = fleet_file(tmp_path, router={"default_engine": "plain", "explore": 0.1})
    text, as_json = invoke("check-config", path), invoke("check-config", path, "--json")
    assert (text.exit_code, as_json.exit_code) == (0, 0)
    assert words(text.stderr) == "warning: router.explore is now called router.exploration.rate"
    assert json.loads(as_json.stdout)["warnings"] == ["router.explore is now called router.exploration.rate"]


# --- models ---


def test_models_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTPICK_CACHE", str(tmp_path))
    rows = json.loads(invoke("models", "--json").stdout)
    assert [set(row) for row in rows] == [{"role", "name", "path", "ready"}] * len(rows)
    target, encoder, *drafters = rows
    assert (target["role"], target["ready"], target["path"]) == ("target", False, str(tmp_path / target["name"]))
    assert (encoder["role"], encoder["ready"]) == ("encoder", True)
    assert all(row["role"] == "drafter" and row["name"].startswith("embedded:") for row in drafters)


def test_models_tells_that_the_target_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTPICK_CACHE", str(tmp_path))
    assert "on first use" in invoke("models").stdout
    target = Path(json.loads(invoke("models", "--json").stdout)[0]["path"])
    target.mkdir()
    (target / "config.json").write_text("{}")
    assert "on first use" not in invoke("models").stdout
    assert json.loads(invoke("models", "--json").stdout)[0]["ready"] is True


# --- train and evaluate ---


@pytest.fixture
def collected(tmp_path: Path) -> Path:
    """A folder with a dataset of features that need no encoder."""
    texts = {"edit": "Rewrite paragraph", "chat": "Tell me a story about city"}
    prompts = [Prompt(f"{kind}-{i}", kind, f"{text} {i}") for i in range(10) for kind, text in texts.items()]
    taus = {"edit": {"plain": 1.0, "ngram": 2.0}, "chat": {"plain": 1.0, "ngram": 0.5}}

    def measured(prompt: Prompt, arm: str) -> Measurement:
        tau = taus[prompt.kind][arm]
        outcome = Outcome("ok", 200, 0.1, 0.1 / tau, output_tokens=11, acceptance_length=tau)
        return Measurement.from_prompt(prompt, arm, arm, outcome)

    made = contexts([LexicalFeaturizer()], prompts)
    save(tmp_path / "data.parquet", [measured(p, arm) for p in prompts for arm in ("plain", "ngram")], made)
    return tmp_path


def on(collected: Path, command: str, *more: str) -> list[str]:
    return [command, "--data", str(collected / "data.parquet"), *more]


def test_a_policy_is_trained_and_judged(collected: Path) -> None:
    policy = str(collected / "policy")
    trained = invoke(*on(collected, "train", "--output-dir", policy, "--learner", "exact", "--json"))
    assert trained.exit_code == 0
    expected = {"policy": policy, "requests": 20, "arms": ["ngram", "plain"], "dropped": {}}
    assert json.loads(trained.stdout) == {**expected, "featurizer": LexicalFeaturizer().id}
    judged = invoke(*on(collected, "evaluate", "--policy", policy, "--json"))
    assert judged.exit_code == 0
    found = json.loads(judged.stdout)
    assert found["n"] == 20
    assert found["best_fixed"] == "plain"
    assert found["time_s"]["plain"] == pytest.approx(22)
    assert found["time_s"]["ngram"] == pytest.approx(10 * 0.6 + 10 * 2.1)
    assert set(found["policy_vs_plain"]) == {"value", "low", "high"}


def test_train_tells_what_it_did(collected: Path) -> None:
    result = invoke(*on(collected, "train", "--output-dir", str(collected / "policy"), "--learner", "ridge"))
    assert "requests 20; arms ['ngram', 'plain']" in words(result.stdout)


def test_an_unknown_learner_is_named(collected: Path) -> None:
    result = invoke(*on(collected, "train", "--output-dir", str(collected / "policy"), "--learner", "exakt"))
    assert isinstance(result.exception, DatasetError)
    assert "unknown learner 'exakt' (did you mean 'exact'?" in str(result.exception)


def test_what_is_no_network_is_fitted_in_one_process(collected: Path) -> None:
    result = invoke(*on(collected, "train", "--output-dir", str(collected / "policy"), "--workers", "2"))
    assert result.exit_code == 2
    assert "--workers: only networks train on several workers" in result.stderr


@pytest.mark.parametrize("both", [True, False])
def test_train_needs_one_kind_of_data(collected: Path, both: bool) -> None:
    given = ["--data", str(collected), "--records", str(collected)] if both else []
    result = invoke("train", "--output-dir", str(collected / "policy"), *given)
    assert result.exit_code == 2
    assert "give either --data or --records" in words(result.output)


@pytest.mark.parametrize(
    ("home", "problem"),
    [
        ("math", "give ENGINE=PROMPTS, as in code=generated:code@300"),
        ("math=generated:maths", "no prompts of kind maths in generated"),
    ],
)
def test_a_home_that_cannot_be_read_is_named(home: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "featurizers", lambda: [LexicalFeaturizer()])
    with pytest.raises(ValueError, match=problem):
        features.read_training_domains([home], LexicalFeaturizer().id)


def test_homes_are_contexts_of_what_drafters_were_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "featurizers", lambda: [LexicalFeaturizer()])
    found = features.read_training_domains(["one=generated:math@20", "two=generated:chat"], LexicalFeaturizer().id)
    assert {arm: home.shape for arm, home in found.items()} == {
        "one": (20, LexicalFeaturizer().dimension),
        "two": (300, LexicalFeaturizer().dimension),
    }
    assert features.read_training_domains([], "whatever") == {}
    with pytest.raises(ValueError, match="the featurizer 'other' is not available"):
        features.read_training_domains(["one=generated:math"], "other")


def test_what_was_collected_before_needs_no_fleet(measured_often: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = LexicalFeaturizer(32)
    monkeypatch.setattr(features, "featurizers", lambda: [new])
    files = ["--output-dir", str(measured_often), "--seed", "1", "-n", "120", "--url", "http://127.0.0.1:9"]
    result = invoke("collect", *files, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["measurements"], found["kept"], found["renewed"]) == (0, 120, 120)
    assert load(measured_often).featurizers == [new.id]


def test_a_featurizer_without_contexts_is_named(collected: Path) -> None:
    result = invoke(*on(collected, "train", "--output-dir", str(collected / "policy"), "--featurizer", "other"))
    assert isinstance(result.exception, DatasetError)
    assert "no contexts of 'other' (available: lexical-64+lexical-v3)" in str(result.exception)


def test_a_dataset_that_is_missing_is_named(collected: Path) -> None:
    policy = write_policy(collected / "policy", ["plain", "ngram"], dimension=LexicalFeaturizer().dimension)
    result = invoke("evaluate", "--policy", str(policy), "--data", str(collected / "none.parquet"))
    assert isinstance(result.exception, DatasetError)
    assert f"{collected / 'none.parquet'} is not readable" in str(result.exception)


def test_a_policy_for_other_arms_is_not_judged(collected: Path) -> None:
    policy = write_policy(collected / "policy", ["plain", "math"], dimension=LexicalFeaturizer().dimension)
    result = invoke(*on(collected, "evaluate", "--policy", str(policy)))
    assert isinstance(result.exception, DatasetError)


def test_the_data_card_is_printed(collected: Path) -> None:
    shown = invoke("dataset", str(collected / "data.parquet"))
    assert "20 requests, featurizers lexical-64+lexical-v3" in words(shown.stdout)
    found = json.loads(invoke("dataset", str(collected / "data.parquet"), "--json").stdout)
    assert found["arms"]["ngram"]["live"] == 20


def test_a_dataset_and_a_policy_name_the_files_of_their_prompts(collected: Path) -> None:
    (collected / "p.jsonl").write_text('{"prompt": "Hi", "kind": "talk", "source": "org/set"}')
    card = prompt_card(read_file(collected / "p.jsonl"))
    save_prompt_cards(collected, [card])
    save_prompt_cards(collected, [card])
    assert "prompts of p.jsonl: JSON lines" in words(invoke("dataset", str(collected)).stdout)
    invoke("train", "--data", str(collected), "--output-dir", str(collected / "policy"), "--learner", "ridge")
    manifest = json.loads((collected / "policy" / "manifest.json").read_text())
    assert manifest["provenance"]["prompts"] == [{"file": "p.jsonl", "sha256": card["sha256"]}]


def test_the_card_of_a_file_of_prompts_names_it_and_overlapping_splits(tmp_path: Path) -> None:
    text = " ".join(f"word{i}" for i in range(30))
    rows = [
        {"prompt": f"{split} {text}", "kind": "talk", "source": split, "split": split} for split in ("train", "dev")
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shown = invoke("dataset", "--prompts", str(tmp_path / "p.jsonl"))
    assert shown.exit_code == 1
    assert "JSON lines of prompts or messages" in shown.stdout
    assert "error: train and dev overlap: 1 prompts of dev" in words(shown.stderr)
    found = invoke("dataset", "--prompts", str(tmp_path / "p.jsonl"), "--overlap", "allow", "--json")
    assert (found.exit_code, json.loads(found.stdout)["files"][0]["sources"]) == (0, {"train": 1, "dev": 1})


# --- report, collect and label ---


@pytest.fixture
def measured_often(tmp_path: Path) -> Path:
    """A folder with a dataset of some kinds of prompts whose best arms differ, greedy and sampled, with alignments."""
    prompts = generate(120, seed=1, sampled_share=0.5, max_tokens=32)
    arms = ("plain", "ngram", "math")
    best = {"edit": "ngram", "summary": "ngram", "math": "math"}
    rng = np.random.default_rng(0)

    def measured(prompt: Prompt, arm: str) -> Measurement:
        tau = 1.0 if arm == "plain" else float(rng.uniform(1.9, 2.1) if best.get(prompt.kind) == arm else 1.05)
        outcome = Outcome("ok", 200, 0.1, 0.012 / tau, prompt_tokens=40, output_tokens=32, acceptance_length=tau)
        alike = dict.fromkeys(STATISTICS, tau / 3) if arm != "plain" and prompt.temperature == 0 else {}
        return Measurement.from_prompt(prompt, arm, arm, outcome, alignment=alike)

    made = contexts([LexicalFeaturizer()], prompts)
    save(tmp_path / "data.parquet", [measured(p, arm) for p in prompts for arm in arms], made)
    return tmp_path


def test_the_report_is_one_page_and_its_figures_are_json(measured_often: Path) -> None:
    page, data = measured_often / "report.html", str(measured_often / "data.parquet")
    options = ["--learners", "best_fixed,ridge", "--seeds", "2", "--output-dir", str(measured_often)]
    given = ["--paraphrased-data", data, "--under-load", data, "--paper", data, "--self-drafting", "math"]
    result = invoke("report", "--data", data, "--output", str(page), *options, *given)
    assert result.exit_code == 0
    assert "ridge" in words(result.stdout)
    html = page.read_text()
    assert html.count("<svg") == 7
    assert not re.search(r"<script|<link|src=|url\(", html.replace("url(#", ""))  # nothing is fetched
    ladder = json.loads((measured_often / "ladder.json").read_text())["figures"]
    for name in ("iid_share_of_oracle", "lodo_share_of_oracle", "worst_domain_vs_plain", "rewording_share_of_own_gain"):
        assert {"value", "low", "high"} == set(ladder[name])
    assert ladder["best_fixed/iid/share_of_oracle"]["value"] == 0
    assert ladder["ridge/iid/share_of_oracle"]["value"] > 0.8
    paper = json.loads((measured_often / "paper.json").read_text())
    verdicts = {name: paper["figures"][f"{name}/holds"]["value"] for name in paper["claims"]}
    assert len(verdicts) == 8
    assert set(verdicts.values()) <= {0, 1}


def test_the_curve_judges_few_examples_in_the_papers_results_too(measured_often: Path, tmp_path: Path) -> None:
    data = str(measured_often / "data.parquet")
    results, policy = tmp_path / "results", tmp_path / "policy"
    assert invoke("train", "--data", data, "--output-dir", str(policy)).exit_code == 0
    paper = results / "paper.json"
    write(paper, 3, {"few_examples_suffice/enough": Interval(800, 800, 800)}, claims={"alike": {"said": "so"}})
    options = ["--costs", str(policy), "--learner", "ridge", "--seeds", "2", "--output-dir", str(results)]
    result = invoke("learning-curve", "--data", data, "--train-data", data, *options)
    assert result.exit_code == 0
    assert "fewer than 10,000 examples suffice" in words(result.stdout)
    found = json.loads((results / "learning-curve.json").read_text())["figures"]
    assert found["learning_curve/100"]["value"] > 0.8
    assert "<svg" in (results / "learning-curve.svg").read_text()
    amended = json.loads(paper.read_text())
    assert amended["figures"]["few_examples_suffice/enough"] == found["few_examples_suffice/enough"]
    assert set(amended["claims"]) == {"alike", "few_examples_suffice"}
    assert "few_examples_suffice/enough" in amended["amended"][0]["figures"]


def test_the_curve_needs_a_policy_that_knows_costs(measured_often: Path, tmp_path: Path) -> None:
    data = str(measured_often / "data.parquet")
    result = invoke("learning-curve", "--data", data, "--train-data", data, "--costs", str(tmp_path))
    assert isinstance(result.exception, DatasetError)
    assert "has no costs of a step" in str(result.exception)


def test_the_ladder_of_the_report_can_be_had_as_json(measured_often: Path) -> None:
    page, data = measured_often / "report.html", str(measured_often / "data.parquet")
    options = ["--learners", "best_fixed,ridge", "--seeds", "1", "--json"]
    result = invoke("report", "--data", data, "--output", str(page), *options)
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["page"] == str(page)
    assert [row["learner"] for row in found["ladder"]] == ["best_fixed", "ridge"]


def test_the_report_refuses_an_unknown_learner_before_it_works(measured_often: Path) -> None:
    result = invoke("report", "--data", str(measured_often / "data.parquet"), "--learners", "rigde")
    assert isinstance(result.exception, DatasetError)
    assert "did you mean 'ridge'" in str(result.exception)
    assert not (measured_often / "report.html").exists()


def test_label_needs_engines_that_can_be_replayed(tmp_path: Path) -> None:
    result = invoke("label", "--config", "mock", "--output-dir", str(tmp_path / "labels"))
    assert result.exit_code == 2
    assert "fewer than two engines can be replayed" in words(result.output)


# --- errors and exit codes of the program ---


def test_a_wrong_configuration_is_exit_code_2_and_no_traceback() -> None:
    done = draftpick("check-config", "mok")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: config: unknown fleet 'mok' (did you mean 'mock'?")
    assert "Traceback" not in done.stderr


def test_a_failure_is_exit_code_1_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"question": "Hi"}')
    done = draftpick("collect", "--output-dir", str(tmp_path / "data"), "--prompts", str(tmp_path / "prompts.jsonl"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'prompts.jsonl'}:1: ")
    assert len(done.stderr.splitlines()) == 1


def test_collecting_without_a_router_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hi"}')
    files = ["--output-dir", str(tmp_path / "data"), "--prompts", str(tmp_path / "prompts.jsonl")]
    monkeypatch.setattr(sys, "argv", ["draftpick", "collect", *files, "--url", "http://127.0.0.1:9"])
    monkeypatch.setattr(logging, "captureWarnings", lambda capture: None)
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert "http://127.0.0.1:9" in capsys.readouterr().err


# --- prompts ---


def test_prompts_of_a_file_come_of_all_kinds_in_turn(tmp_path: Path) -> None:
    lines = [{"prompt": f"{kind} {i}", "kind": kind} for kind in ("math", "chat", "code") for i in range(20)]
    lines.append({"prompt": "own", "kind": "own", "temperature": 0.3, "max_tokens": 5})
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    chosen = load_prompts([str(tmp_path / "p.jsonl")], 13, 0, 0.5, 32)
    assert sorted(p.kind for p in chosen) == ["chat"] * 4 + ["code"] * 4 + ["math"] * 4 + ["own"]
    assert {p.temperature for p in chosen if p.kind != "own"} == {0.0, 0.7}
    assert {p.max_tokens for p in chosen if p.kind != "own"} == {32}
    assert [(p.temperature, p.max_tokens) for p in chosen if p.kind == "own"] == [(0.3, 5)]
    assert load_prompts([str(tmp_path / "p.jsonl")], 13, 0, 0.5, 32) == chosen
    assert all(p.temperature == 0 for p in load_prompts([str(tmp_path / "p.jsonl")], 9, 0, 0.0, 32) if p.kind != "own")


@pytest.mark.parametrize(
    "wrong",
    [
        ["eagle", "--minutes", "0"],
        ["eagle", "--unroll-steps", "0"],
        ["eagle", "--init-from", "nowhere"],
        ["distill", "--epochs", "0"],
        ["distill", "--hidden", "-1"],
        ["layer-skip", "--trials", "0"],
    ],
)
def test_options_out_of_range_are_wrong_usage_before_any_work(tmp_path: Path, wrong: list[str]) -> None:
    command, option, value = wrong
    result = invoke("drafters", command, "--prompts", "generated", "--output-dir", str(tmp_path / "o"), option, value)
    assert result.exit_code == 2
    assert option in words(result.output)


def test_a_picker_names_engines_by_address_and_port_alone(tmp_path: Path) -> None:
    engines = [{"name": "plain", "url": "http://127.0.0.1:9/v1"}, {"name": "below", "url": "http://127.0.0.1:9/below"}]
    run = invoke("epp", "--config", fleet_file(tmp_path, engines=engines))
    assert isinstance(run.exception, ConfigError)
    assert str(run.exception).startswith("engines.below.url: has a path")


def test_a_picker_takes_a_port_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRAFTPICK_REPORT_SECRET", raising=False)
    engines = [{"name": "plain", "url": "http://127.0.0.1:9"}]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        run = invoke("epp", "--config", fleet_file(tmp_path, engines=engines), "--port", port, "--http-port", "0")
    assert isinstance(run.exception, ConfigError)
    assert f"cannot listen on 127.0.0.1:{port}" in str(run.exception)
    assert "engines do not report" in words(run.stderr)
