"""`draftpick doctor`: check a fleet."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from draftpick.deploy.cli.options import Json
from draftpick.deploy.console import out
from draftpick.engines.errors import ConfigError

if TYPE_CHECKING:
    from draftpick.deploy.doctor import Finding

doctor_app = typer.Typer()

_COLOURS = {"problem": "red", "warning": "yellow", "note": "cyan", "ok": "green"}


@doctor_app.command()
def doctor(
    config: Annotated[
        str | None, typer.Argument(help="A YAML file, or the name of a fleet; default: embedded.")
    ] = None,
    url: Annotated[list[str], typer.Option("--url", help="NAME=URL of a running engine to check; repeatable.")] = [],
    host: Annotated[str, typer.Option("--host", help="Address that the router will listen on.")] = "127.0.0.1",
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Timeout of a request to an engine, in seconds.")
    ] = 5.0,
    everything: Annotated[bool, typer.Option("--all", help="Also list the checks that passed.")] = False,
    as_json: Json = False,
) -> None:
    """Check a fleet for problems, and print a fix for each.

    Starts nothing. Running engines (kind `url`, and those of --url) are asked for their status pages and one short
    answer. See `draftpick headroom` for what routing would save.

    Exit codes: 0 no problems, 1 problems found, 2 wrong usage or configuration.

    Examples:

      draftpick doctor fleet.yaml
      draftpick doctor --url plain=http://10.0.0.7:8000 --url suffix=http://10.0.0.8:8000
    """
    raise typer.Exit(_examined(config, url, host, timeout, everything, as_json))


def _examined(
    config: str | None, urls: Sequence[str], host: str, timeout_s: float, everything: bool, as_json: bool
) -> int:
    """Run all checks, print the findings, and return the exit code."""
    from draftpick.deploy.doctor import examine
    from draftpick.deploy.doctor.findings import LEVELS
    from draftpick.deploy.doctor.inputs import addresses_of, read_context

    try:
        case = read_context(config, addresses_of(urls), host, timeout_s)
    except ConfigError as error:
        if not as_json:
            raise
        print(json.dumps({"valid": False, "problems": getattr(error, "problems", [str(error)])}))
        return 2
    found = sorted(examine(case), key=lambda finding: LEVELS.index(finding.level))
    counts = Counter(finding.level for finding in found)
    if as_json:
        shown = {"valid": True, "counts": {level: counts[level] for level in LEVELS}}
        print(json.dumps({**shown, "findings": list(map(asdict, found))}))
    else:
        _show(found, everything)
        said = ", ".join(f"{counts[level]} {level}{'s' * (level != 'ok' and counts[level] != 1)}" for level in LEVELS)
        out.print(f"{len(case.config.arms)} engines, {len(case.running)} asked: {said}", highlight=False)
    return int(counts["problem"] > 0)


def _show(found: "Sequence[Finding]", everything: bool) -> None:
    table = Table("", Column("where", overflow="fold", ratio=1), Column("", ratio=2), show_lines=True, expand=True)
    for one in found:
        if one.level == "ok" and not everything:
            continue
        cure = f"\n[bold]{escape(one.cure)}[/bold]" if one.cure else ""
        why = f"\n[dim]{escape(one.why)}[/dim]" if one.why else ""
        colour = _COLOURS[one.level]
        table.add_row(
            f"[{colour}]{one.level}[/{colour}]", escape(one.where or one.check), escape(one.what) + cure + why
        )
    if table.row_count:
        out.print(table)
