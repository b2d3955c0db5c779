"""The command line of API keys: `draftpick keys new | list`."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table

from draftpick.deploy.console import Json, err, fail, out
from draftpick.engines.atomic_write import atomic_write
from draftpick.router.http.auth import Key, digest, new_key, read_keys

keys_app = typer.Typer(no_args_is_help=True, help="API keys of the router: `router.keys.file` holds their hashes.")

File = Annotated[Path, typer.Option("--file", help="The file of keys (`router.keys.file`).")]


@keys_app.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose key it is; refusals and the history of policies say it.")],
    file: File = Path("keys.yaml"),
    admin: Annotated[bool, typer.Option("--admin", help="It may pin engines, change the policy and explain.")] = False,
    requests_per_minute: Annotated[int | None, typer.Option("--rpm", min=1, help="Requests a minute.")] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option("--tpm", min=1, help="Tokens a minute, of prompts and answers.")
    ] = None,
    priority: Annotated[str, typer.Option(help="The highest that it may ask for: low, normal or high.")] = "normal",
    expires: Annotated[datetime | None, typer.Option(help="From then on (UTC) it is refused.")] = None,
    as_json: Json = False,
) -> None:
    """Make a key and add its hash to the file. The key itself is shown once and kept nowhere.

    A running router reads the file again within a second.

    Example: draftpick keys new search-team --rpm 600 --file keys.yaml
    """
    keys = read_keys(file) if file.exists() else []
    if any(key.name == name for key in keys):
        fail(f"{file} has a key {name!r} already (choose another name, or remove its line)", 2)
    secret = new_key()
    fields: dict[str, Any] = {
        "name": name,
        "sha256": digest(secret),
        "scopes": ("chat", "admin") if admin else ("chat",),
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "priority": priority,
        "expires": expires.replace(tzinfo=UTC) if expires else None,
    }
    _write(file, [*keys, Key.model_validate(fields)])
    if as_json:
        print(json.dumps({"name": name, "key": secret, "file": str(file)}))
        return
    print(secret)
    err.print(f"in {file} as {name!r}; the key is shown this once", highlight=False, style="dim")


@keys_app.command("list")
def show(file: File = Path("keys.yaml"), as_json: Json = False) -> None:
    """Show the keys of a file: names, scopes, limits; never a key.

    Example: draftpick keys list --file keys.yaml
    """
    keys = read_keys(file)
    if as_json:
        print(json.dumps([key.model_dump(mode="json", exclude={"sha256"}) for key in keys]))
        return
    table = Table("name", "scopes", "requests/min", "tokens/min", "priority", "expires")
    for key in keys:
        limits = [str(limit or "-") for limit in (key.requests_per_minute, key.tokens_per_minute)]
        table.add_row(key.name, ", ".join(key.scopes), *limits, key.priority, str(key.expires or "-"))
    out.print(table)


def _write(file: Path, keys: list[Key]) -> None:
    """Replace the file whole: a router that reads it meanwhile sees the old or the new. Its owner alone reads it."""
    rows = [key.model_dump(mode="json", exclude_none=True, exclude_defaults=True) for key in keys]
    atomic_write(file, yaml.safe_dump(rows, sort_keys=False), mode=0o600)
