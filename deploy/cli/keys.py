"""API keys: `draftpick keys new | list`."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table

from draftpick.deploy.cli.options import Json
from draftpick.deploy.console import err, fail, out
from draftpick.engines.atomic_write import atomic_write
from draftpick.router.http.auth import Key, digest, new_key, read_keys

keys_app = typer.Typer(
    no_args_is_help=True, help="Manage the API keys of the router; `router.keys.file` holds their hashes."
)

File = Annotated[Path, typer.Option("--file", help="File with the keys (`router.keys.file`).")]


@keys_app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the key; shown in errors and in the history of policies.")],
    file: File = Path("keys.yaml"),
    admin: Annotated[
        bool, typer.Option("--admin", help="Allow pinning engines, changing the policy, and `explain`.")
    ] = False,
    requests_per_minute: Annotated[int | None, typer.Option("--rpm", min=1, help="Requests per minute.")] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option("--tpm", min=1, help="Tokens per minute, prompts and answers together.")
    ] = None,
    max_concurrent: Annotated[int | None, typer.Option("--concurrent", min=1, help="Requests at once.")] = None,
    hide_routing: Annotated[
        bool, typer.Option("--hide-routing", help="Answers do not name the engine and the policy.")
    ] = False,
    priority: Annotated[
        str, typer.Option("--priority", help="Highest priority that a request may set: low, normal or high.")
    ] = "normal",
    expires: Annotated[datetime | None, typer.Option("--expires", help="Expiry time (UTC).")] = None,
    as_json: Json = False,
) -> None:
    """Create a key and add its hash to the file. The key is printed once and not stored.

    A running router reloads the file within a second.

    Example: draftpick keys new search-team --rpm 600 --file keys.yaml
    """
    keys = read_keys(file) if file.exists() and file.stat().st_size else []
    if any(key.name == name for key in keys):
        fail(f"{file} already has a key {name!r} (choose another name, or remove its line)", 2)
    secret = new_key()
    fields: dict[str, Any] = {
        "name": name,
        "sha256": digest(secret),
        "scopes": ("chat", "admin") if admin else ("chat",),
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_concurrent": max_concurrent,
        "show_routing": not hide_routing,
        "priority": priority,
        "expires": expires.replace(tzinfo=UTC) if expires else None,
    }
    _write(file, [*keys, Key.model_validate(fields)])
    if as_json:
        print(json.dumps({"name": name, "key": secret, "file": str(file)}))
        return
    print(secret)
    err.print(f"added to {file} as {name!r}; the key is not shown again", highlight=False, style="dim")


@keys_app.command("list")
def show(file: File = Path("keys.yaml"), as_json: Json = False) -> None:
    """List the keys of a file: names, scopes and limits, never the key itself.

    Example: draftpick keys list --file keys.yaml
    """
    keys = read_keys(file)
    if as_json:
        print(json.dumps([key.model_dump(mode="json", exclude={"sha256"}) for key in keys]))
        return
    table = Table("name", "scopes", "requests/min", "tokens/min", "at once", "priority", "expires")
    for key in keys:
        limits = [str(limit or "-") for limit in _limits(key)]
        table.add_row(key.name, ", ".join(key.scopes), *limits, key.priority, str(key.expires or "-"))
    out.print(table)


def _limits(key: Key) -> tuple[int | None, ...]:
    return key.requests_per_minute, key.tokens_per_minute, key.max_concurrent


def _write(file: Path, keys: list[Key]) -> None:
    """Replace the file atomically, readable by its owner only."""
    rows = [key.model_dump(mode="json", exclude_none=True, exclude_defaults=True) for key in keys]
    atomic_write(file, yaml.safe_dump(rows, sort_keys=False), mode=0o600)
