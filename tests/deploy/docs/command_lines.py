"""Whether a command line is one of `draftpick`'s. Nothing is run."""

from collections.abc import Sequence

import typer
from typer.exceptions import TyperException

from draftpick.deploy.generate.cli_page import commands, main_command

_DEEPEST = 2


def refusal(words: Sequence[str], *, whole: bool = True) -> str | None:
    """What is wrong with `draftpick WORDS`; None where it would run. Not `whole`: something may be missing."""
    found = commands()
    if words and words[0] in {name for param in main_command().params for name in param.opts}:
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
