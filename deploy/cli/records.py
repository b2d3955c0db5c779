"""Records of attempts: `draftpick records repair`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from draftpick.deploy.cli.options import Json
from draftpick.deploy.console import fail, out
from draftpick.router.records import SEGMENTS, repair

records_app = typer.Typer(no_args_is_help=True, help="Manage the records of attempts; see `router.records`.")


@records_app.command("repair")
def repair_records(
    folder: Annotated[Path, typer.Argument(help="Folder of the records (`router.records.dir`).")],
    min_age_s: Annotated[
        float,
        typer.Option("--min-age", min=0, help="Skip segments written in the last seconds: routers may append."),
    ] = 3600.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the damaged lines only.")] = False,
    as_json: Json = False,
) -> None:
    """Move damaged lines out of the segments, to a file `<segment>.damaged` beside each.

    Readers skip such lines and count them, so nothing stops without this.

    Example: draftpick records repair /data/records
    """
    if not any(folder.glob(SEGMENTS)):
        fail(f"{folder} contains no {SEGMENTS}", 2)
    found = repair(folder, min_age_s, dry_run=dry_run)
    if as_json:
        print(json.dumps([{**one._asdict(), "segment": str(one.segment)} for one in found]))
        return
    for one in found:
        out.print(f"{one.segment}: {one.damaged} damaged lines, {one.records} records", highlight=False, soft_wrap=True)
    out.print(f"{sum(one.damaged for one in found)} damaged lines in {len(found)} segments", highlight=False)
