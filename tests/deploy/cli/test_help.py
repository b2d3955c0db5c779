"""What every command owes to whoever runs it: an example that is right, JSON for programs, completion, no colours."""

import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from draftpick.deploy.cli import main as cli
from draftpick.deploy.cli.options import DEFAULT_SEED
from draftpick.deploy.generate.cli_page import commands, said
from tests.deploy.docs.command_lines import refusal

COMMANDS = commands()
NO_DATA = {"serve", "route", "epp", "vllm-args"}
"""Commands that run until they are stopped, whose /ready a program asks, and one whose output is a command line."""
FIGURES_IN_A_FILE = {"demo", "drafters benchmark", "drafters losses", "drafters replay"}
OWN_EXIT_CODES = {"check-config", "collect", "doctor", "headroom", "retrain"}
DRAFTPICK = Path(sys.executable).parent / "draftpick"

SWITCHES = {
    switch
    for command in COMMANDS.values()
    for param in command.params
    if getattr(param, "is_flag", False)
    for switch in (*param.opts, *param.secondary_opts)
}

each_command = pytest.mark.parametrize("name", COMMANDS)


@each_command
def test_the_help_ends_with_examples_that_are_right(name: str) -> None:
    examples = said(COMMANDS[name])[1]
    assert examples
    for line in examples:
        program, *words = shlex.split(line.partition(" | ")[0])
        assert program == "draftpick"
        assert " ".join(words).startswith(name)
        assert refusal(words) is None, line


@each_command
def test_whatever_is_printed_can_be_had_as_json(name: str) -> None:
    options = {option: param for param in COMMANDS[name].params for option in param.opts}
    assert ("--json" in options) is (name not in NO_DATA | FIGURES_IN_A_FILE)
    assert ("--json-file" in options) is (name in FIGURES_IN_A_FILE)


@each_command
def test_one_flag_means_one_thing(name: str) -> None:
    options = {option: param for param in COMMANDS[name].params for option in (*param.opts, *param.secondary_opts)}
    for option, param in options.items():
        assert getattr(param, "is_flag", False) is (option in SWITCHES), option
    assert "--out" not in options
    if "--seed" in options:
        assert options["--seed"].default == DEFAULT_SEED


@each_command
def test_exit_codes_of_its_own_are_in_the_help(name: str) -> None:
    assert ("Exit codes: " in said(COMMANDS[name])[0]) is (name in OWN_EXIT_CODES)


def test_the_exit_codes_of_all_commands_are_in_the_help() -> None:
    result = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration" in result.stdout


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("policies", "there is no command 'policies'"),
        ("polices list", "there is no command 'polices list'"),
        ("policies list", "--registry"),
        ("serve --prot 1", "--prot"),
        ("serve --port", "--port"),
        ("serve --port x", "--port"),
        ("check-config a b", "b"),
    ],
)
def test_a_wrong_command_line_is_refused(words: str, wrong: str) -> None:
    assert wrong in (refusal(words.split()) or "")


@pytest.mark.parametrize("words", ["", "policies", "policies list", "serve --port 1", "retrain --help"])
def test_a_command_line_may_be_named_in_part(words: str) -> None:
    assert refusal(words.split(), whole=False) is None


def test_paragraphs_of_the_help_fill_their_lines_and_examples_keep_theirs() -> None:
    about, examples = said(COMMANDS["doctor"])
    assert not any("\n" in paragraph for paragraph in about.split("\n\n"))
    assert len(examples) == 2


# --- completion ---


@pytest.mark.parametrize(
    ("typed", "found"),
    [("po", {"policies"}), ("policies p", {"pin", "promote", "prune"}), ("serve --p", {"--port", "--policy"})],
)
def test_commands_and_options_are_completed(typed: str, found: set[str]) -> None:
    asked = {"COMP_WORDS": f"draftpick {typed}", "COMP_CWORD": str(len(typed.split()))}
    result = CliRunner().invoke(cli.app, [], env={**asked, "_DRAFTPICK_COMPLETE": "complete_bash"})
    assert set(result.stdout.split()) == found


def test_completion_is_installed_for_the_shell_it_is_called_from(tmp_path: Path) -> None:
    script = f"{DRAFTPICK} --install-completion && source ~/.bashrc && complete -p draftpick"
    found = subprocess.run(
        ["bash", "--norc", "-c", script], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert "-F _draftpick_completion draftpick" in found.stdout


# --- colours ---


def on_a_terminal(*words: str, **environment: str) -> bytes:
    """What a command writes to a terminal."""
    here, there = pty.openpty()
    settings = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment = {**settings, "TERM": "xterm-256color", **environment}
    process = subprocess.Popen([DRAFTPICK, *words], stdout=there, stderr=there, env=environment)
    os.close(there)
    written = bytearray()
    try:
        while data := os.read(here, 65536):
            written += data
    except OSError:  # so Linux says that the other end is closed
        pass
    os.close(here)
    assert process.wait(60) == 0
    return bytes(written)


def test_colours_switch_off() -> None:
    assert b"\x1b[32mvalid" in on_a_terminal("check-config", "mock")
    assert b"\x1b[" not in on_a_terminal("check-config", "mock", NO_COLOR="1")
    assert b"\x1b[" not in on_a_terminal("check-config", "mock", TERM="dumb")


def test_nothing_but_json_is_on_standard_output() -> None:
    found = subprocess.run([DRAFTPICK, "check-config", "mock", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout)["valid"] is True
    assert found.stderr == ""
