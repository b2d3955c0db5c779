"""The commands of `draftpick`, and whether a command line is one of theirs. Nothing is run."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import typer
from typer.exceptions import TyperException

from deploy import cli

_EXAMPLES = ("Example: ", "Examples:")
_DEEPEST = 2


@cache
def main() -> Any:
    """What `draftpick` is made of."""
    return typer.main.get_command(cli.app)


@cache
def commands() -> Mapping[str, Any]:
    """Every command by what follows `draftpick`, in the order of the help."""
    return dict(_below((), main()))


def _below(path: tuple[str, ...], command: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield " ".join(path), command
    for name, one in (inner or {}).items():
        yield from _below((*path, name), one)


def said(command: Any) -> tuple[str, list[str]]:
    """A command's help, and the command lines that it ends with."""
    text = str(command.help)
    at = max(text.rfind(mark) for mark in _EXAMPLES)
    if at < 0:
        return text, []
    lines = text[at:].partition(":")[2].splitlines()
    return text[:at].strip(), [line.strip() for line in lines if line.strip()]


def refusal(words: Sequence[str], *, whole: bool = True) -> str | None:
    """What is wrong with `draftpick WORDS`; None where it would run. Not `whole`: something may be missing."""
    found = commands()
    if words and words[0] in {name for param in main().params for name in param.opts}:
        return None
    for length in range(_DEEPEST, 0, -1):
        command = found.get(" ".join(words[:length]))
        if command is not None:
            break
    else:
        groups = {name.split()[0] for name in found}
        return None if not whole and (not words or words[0] in groups) else f"there is no command {' '.join(words)!r}"
    try:
        command.make_context(command.name, list(words[length:]))
    except typer.Exit:  # --help
        return None
    except TyperException as error:
        message = error.format_message()
        return None if not whole and ("Missing" in message or "requires an argument" in message) else message
    return None
