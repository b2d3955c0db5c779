"""Generates docs/cli.md from the commands: `python -m draftpick.deploy.generate.cli_page`."""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import typer

from draftpick.deploy.cli import main as cli
from draftpick.deploy.generate.markdown import slug

FILE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
_HEAD = """\
# Command line

The help of every command, as in `draftpick COMMAND --help`. Generated from the code by `make manifests`.

- `--json` prints JSON in place of text, on standard output; progress, warnings and errors go to standard error.
  Commands that measure for minutes (`demo`, `drafters benchmark`, `replay` and `losses`) take `--json-file PATH` and
  print text as well.
- `--output` is a file, `--output-dir` a folder; `--records` is a folder of the router's records, `--data` a dataset.
- Spellings of the last release still work, with a warning on standard error.
- {epilog}
- Without a terminal, or with `TERM=dumb`, output has no colours; without a terminal on standard error, no progress
  bars.
- `draftpick --install-completion` installs completion of commands and options for bash, zsh, fish and PowerShell;
  `draftpick --show-completion` prints it.

"""
_EXAMPLES = ("Example: ", "Examples:")


@cache
def main_command() -> Any:
    """The root command `draftpick`."""
    return typer.main.get_command(cli.app)


@cache
def commands() -> Mapping[str, Any]:
    """Every command by its words after `draftpick`, in the order of the help."""
    return dict(_below((), main_command()))


def _below(path: tuple[str, ...], command: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield " ".join(path), command
    for name, one in (inner or {}).items():
        yield from _below((*path, name), one)


def said(command: Any) -> tuple[str, list[str]]:
    """A command's help, and its example command lines."""
    text = str(command.help)
    at = max(text.rfind(mark) for mark in _EXAMPLES)
    if at < 0:
        return text, []
    lines = text[at:].partition(":")[2].splitlines()
    return text[:at].strip(), [line.strip() for line in lines if line.strip()]


def text() -> str:
    """The page."""
    found = commands()
    rows = [f"| [`draftpick {name}`](#{slug(f'draftpick {name}')}) | {_first(one)} |" for name, one in found.items()]
    listed = "\n".join(["| command | what it does |", "|---|---|", *rows])
    head = _HEAD.format(epilog=cli.app.info.epilog)
    return f"{head}{listed}\n\n" + "\n".join(_shown(name, one) for name, one in found.items())


def _first(command: Any) -> str:
    return said(command)[0].split("\n\n")[0]


def _shown(name: str, command: Any) -> str:
    about, examples = said(command)
    lines = "\n".join(examples)
    rows = [_row(param) for param in command.params if "--help" not in param.opts]
    table = "\n".join(["| | default | |", "|---|---|---|", *rows])
    return f"## `draftpick {name}`\n\n{about}\n\n```sh\n{lines}\n```\n\n{table}\n"


def _row(param: Any) -> str:
    """The table row of an argument or an option."""
    option = param.opts[0].startswith("-")
    names = [f"`{one if option else one.upper()}`" for one in sorted((*param.opts, *param.secondary_opts), key=len)]
    about = [param.help.rstrip(".").replace("|", r"\|"), _range(param)]
    about += [f"environment: `{param.envvar}`"] if getattr(param, "envvar", None) else []
    return f"| {', '.join(names)} | {_default(param)} | {'; '.join(filter(None, about))} |"


def _default(param: Any) -> str:
    if param.required:
        return "required"
    if getattr(param, "is_flag", False):
        return "on" if param.default else "off"
    default = param.default
    if isinstance(default, list | tuple):
        default = ", ".join(map(str, default))
    return "" if default is None or default == "" else f"`{default}`"


def _range(param: Any) -> str:
    least, most = getattr(param, "min", None), getattr(param, "max", None)
    if least is None:
        return ""
    return f"{least} or more" if most is None else f"{least} to {most}"


def main() -> None:
    FILE.write_text(text())
    print(FILE)


if __name__ == "__main__":
    main()
