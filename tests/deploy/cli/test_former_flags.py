"""Spellings of the last release: each is accepted, warns on standard error, and means the present one."""

from typing import Any

import pytest
from typer.testing import CliRunner

from draftpick.deploy.cli import main as cli
from draftpick.deploy.cli.former_flags import COMMANDS, FLAGS, modernise
from draftpick.deploy.generate.cli_page import commands
from tests.deploy.cli.test_main import invoke, words
from tests.router.config.test_former_fields import upgrading

ROWS = [(command, former, now) for command, flags in FLAGS.items() for former, now in flags.items()]


def parameter(command: str, flag: str) -> Any:
    return next(one for one in commands()[command].params if flag in (*one.opts, *one.secondary_opts))


def given(command: str, *flags: str) -> list[str]:
    """A command line with these flags, each with a value that its parameter takes."""
    line = command.split()
    for flag in flags:
        name = FLAGS[command].get(flag, flag)
        value = "." if name == "--init-from" else "1"  # the one that must exist
        line += [flag] if parameter(command, name).is_flag else [flag, value]
    return line


def taken(command: str, line: list[str]) -> dict[str, Any]:
    """The parameters that a command line gives a command; other required ones are left out."""
    context = commands()[command].make_context("x", line[len(command.split()) :], resilient_parsing=True)
    return dict(context.params)


@pytest.mark.parametrize(("command", "former", "now"), ROWS)
def test_a_former_flag_gives_the_present_parameter(command: str, former: str, now: str) -> None:
    line, replaced = modernise(given(command, former))
    assert replaced == [(former, now)]
    assert line == given(command, now)
    name = parameter(command, now).name
    assert taken(command, line)[name] not in (None, [], ())


@pytest.mark.parametrize("command", FLAGS)
def test_former_flags_warn_beside_clean_output(command: str) -> None:
    present = invoke(*given(command, *FLAGS[command].values()), "--help")
    result = invoke(*given(command, *FLAGS[command]), "--help")
    assert result.exit_code == 0
    assert result.stdout == present.stdout
    for former, now in FLAGS[command].items():
        assert f"warning: `{former}` is now `{now}`" in words(result.stderr)
    assert present.stderr == ""


@pytest.mark.parametrize(("former", "now"), COMMANDS.items())
def test_a_former_command_is_the_present_one(former: str, now: str) -> None:
    result = invoke(*former.split(), "--help")
    assert result.exit_code == 0
    assert result.stdout == invoke(*now.split(), "--help").stdout
    assert f"warning: `{former}` is now `{now}`" in words(result.stderr)


@pytest.mark.parametrize(("command", "former", "now"), ROWS)
def test_help_shows_the_present_spellings_alone(command: str, former: str, now: str) -> None:
    shown = {flag for one in commands()[command].params for flag in (*one.opts, *one.secondary_opts)}
    assert now in shown
    assert former not in shown


@pytest.mark.parametrize("former", COMMANDS)
def test_former_commands_are_neither_listed_nor_completed(former: str) -> None:
    assert former not in commands()
    asked = {"COMP_WORDS": f"draftpick {former[:2]}", "COMP_CWORD": "1", "_DRAFTPICK_COMPLETE": "complete_bash"}
    result = CliRunner().invoke(cli.app, [], env=asked)
    assert former not in result.stdout.split()
    assert result.stderr == ""


def test_values_arguments_and_what_follows_two_dashes_stay() -> None:
    line = ["doctor", "mock", "--headroom", "--worth=0.1", "--out", "out", "--", "--out"]
    now, replaced = modernise(line)
    assert now == ["headroom", "mock", "--min-gain=0.1", "--output-dir", "out", "--", "--out"]
    assert [former for former, _ in replaced] == ["doctor --headroom", "--worth", "--out"]
    assert modernise(["serve", "--port", "1"]) == (["serve", "--port", "1"], [])
    assert modernise([]) == ([], [])


def test_the_changelog_lists_every_former_spelling() -> None:
    flags = {f"{command} {old}": f"{command} {new}" for command, table in FLAGS.items() for old, new in table.items()}
    assert {f"  - `{old}` -> `{new}`" for old, new in {**COMMANDS, **flags}.items()} <= set(upgrading())
