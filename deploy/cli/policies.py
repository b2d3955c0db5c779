"""The command line of the registry: `draftpick policies list | show | add | canary | promote | pin | ...`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from draftpick.deploy.console import Json, err, out, say

if TYPE_CHECKING:
    from draftpick.router.registry.registry import Registry, RegistryState

registry_app = typer.Typer(
    no_args_is_help=True, help="The registry of policies: what serves, what is on its way, and what was before."
)

Folder = Annotated[Path, typer.Option("--registry", envvar="DRAFTPICK_REGISTRY", help="Folder of the registry.")]
Id = Annotated[str, typer.Argument(help="Id of a policy, such as p0001.")]
Reason = Annotated[str, typer.Option(help="Why; stands in the history.")]
_BY = "command line"


@registry_app.command("list")
def show_all(registry: Folder, as_json: Json = False) -> None:
    """Show all policies: their stage, what is active, pinned, and on its way.

    Example: draftpick policies list --registry /shared/policies
    """
    rows = _rows(_opened(registry).state())
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("id", "stage", "share", "policy", "created", "notes")
    for row in rows:
        share = "" if row["share"] is None else _percent(row["share"])
        style = "bold" if row["stage"] == "active" else None
        table.add_row(
            row["id"], row["stage"], share, row["policy"], row["created"], ", ".join(row["notes"]), style=style
        )
    out.print(table)


@registry_app.command()
def show(id: Id, registry: Folder, as_json: Json = False) -> None:
    """Show one policy: where it comes from, and the report on it.

    Example: draftpick policies show p0001 --registry /shared/policies
    """
    from draftpick.router.policies import artifact

    policies = _opened(registry)
    entry = policies.state().entry(id)
    folder = policies.folder(id)
    manifest = artifact.read(folder)[0]
    found = {
        **{"id": id, **entry.model_dump(mode="json"), "folder": str(folder)},
        **{name: manifest.get(name) for name in ("arms", "featurizer", "provenance")},
        "report": policies.report(id),
    }
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        text = value if isinstance(value, str) else json.dumps(value, indent=2)
        out.print(f"{name}: {text}", highlight=False, markup=False, soft_wrap=True)


@registry_app.command()
def add(
    folder: Annotated[Path, typer.Argument(help="Folder of a policy, as `draftpick train` writes it.")],
    registry: Folder,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Copy a policy into the registry and print its id. The first of a registry becomes active.

    Example: draftpick policies add runs/policy --registry /shared/policies
    """
    from draftpick.router.registry.registry import Registry

    policies = Registry(registry)
    id = policies.add(folder, {"reason": reason}, _BY)
    first = policies.state().active is None
    if first:
        policies.promote(id, _BY, "nothing was active")
    say(as_json, {"id": id, "active": first}, id)
    if first and not as_json:
        err.print(f"{id} is active: nothing else was", highlight=False, style="dim")


@registry_app.command()
def canary(
    id: Id,
    share: Annotated[float, typer.Argument(min=0, max=1, help="Share of the requests; 0: it only looks on.")],
    registry: Folder,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Give a policy a share of the requests. It takes the place of another candidate.

    Example: draftpick policies canary p0002 0.1 --registry /shared/policies
    """
    policies = _opened(registry)
    if share:
        policies.set_canary_share(id, share, _BY, reason, start=True)
        say(as_json, {"id": id, "share": share}, f"{id} decides {_percent(share)} of the requests")
    else:
        policies.start_shadow(id, _BY, reason)
        say(as_json, {"id": id, "share": share}, f"{id} looks on")


@registry_app.command()
def promote(id: Id, registry: Folder, reason: Reason = "", as_json: Json = False) -> None:
    """Make a policy the active one.

    Example: draftpick policies promote p0002 --registry /shared/policies
    """
    policies = _opened(registry)
    policies.promote(id, _BY, reason)
    _say_active(as_json, policies, f"{id} is active")


@registry_app.command()
def pin(id: Id, registry: Folder, reason: Reason = "", as_json: Json = False) -> None:
    """Make a policy the active one, and let nothing replace it until `unpin`.

    Example: draftpick policies pin p0001 --registry /shared/policies
    """
    policies = _opened(registry)
    policies.pin(id, _BY, reason)
    _say_active(as_json, policies, f"{id} is active and pinned")


@registry_app.command()
def unpin(registry: Folder, reason: Reason = "", as_json: Json = False) -> None:
    """Let the active policy be replaced again.

    Example: draftpick policies unpin --registry /shared/policies
    """
    policies = _opened(registry)
    policies.unpin(_BY, reason)
    _say_active(as_json, policies, "nothing is pinned")


@registry_app.command()
def rollback(registry: Folder, reason: Reason = "", as_json: Json = False) -> None:
    """Go back to the policy that was active before; the present one and a candidate are refused.

    Example: draftpick policies rollback --registry /shared/policies --reason "slower on long prompts"
    """
    policies = _opened(registry)
    policies.rollback(_BY, reason)
    _say_active(as_json, policies, f"{policies.state().active} is active again")


@registry_app.command()
def history(registry: Folder, as_json: Json = False) -> None:
    """Show the last changes, the newest at the end.

    Example: draftpick policies history --registry /shared/policies
    """
    changes = [change.model_dump(mode="json") for change in _opened(registry).state().history]
    if as_json:
        print(json.dumps(changes))
        return
    table = Table("time", "action", "policy", "by", "reason")
    for change in changes:
        table.add_row(*(escape(change[name] or "") for name in ("time", "action", "policy", "by", "reason")))
    out.print(table)


@registry_app.command()
def prune(
    registry: Folder,
    keep: Annotated[int, typer.Option(min=1, help="Retired and refused policies that stay, the newest.")],
    as_json: Json = False,
) -> None:
    """Remove old policies that are retired or refused, with their folders.

    Example: draftpick policies prune --keep 20 --registry /shared/policies
    """
    gone = _opened(registry).prune(keep, _BY)
    say(as_json, {"removed": gone}, f"removed: {', '.join(gone) or 'none'}")


def _opened(path: Path) -> "Registry":
    """The registry in `path`. Raises `PolicyRejected` when there is none."""
    from draftpick.router.errors import PolicyRejected
    from draftpick.router.registry.registry import Registry, is_registry

    if not is_registry(path):
        raise PolicyRejected(f"{path} is no registry (make one: draftpick policies add FOLDER --registry {path})")
    return Registry(path)


def _rows(state: "RegistryState") -> list[dict[str, Any]]:
    """One row for each policy, in the order of their ids."""
    rows = []
    for id, entry in sorted(state.policies.items(), key=lambda item: int(item[0][1:])):
        candidate = state.candidate if state.candidate is not None and state.candidate.id == id else None
        notes = {
            "active": id == state.active,
            "pinned": id == state.active and state.pinned,
            "previous": id == state.previous,
            "candidate": candidate is not None,
        }
        share = None if candidate is None else candidate.share
        row = {"id": id, **entry.model_dump(mode="json"), "share": share}
        rows.append({**row, "notes": [name for name, holds in notes.items() if holds]})
    return rows


def _say_active(as_json: bool, policies: "Registry", text: str) -> None:
    state = policies.state()
    say(as_json, {"active": state.active, "previous": state.previous, "pinned": state.pinned}, text)


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
