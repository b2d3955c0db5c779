"""Policies in service and the registry: `draftpick policies activate | list | show | add | canary | promote | ...`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from draftpick.deploy.cli.options import Json, RayAddress, RegistryDir
from draftpick.deploy.console import err, fail, out, say
from draftpick.deploy.extras import require

if TYPE_CHECKING:
    from draftpick.router.registry.registry import Registry, RegistryState

registry_app = typer.Typer(
    no_args_is_help=True, help="Change the policy in service, and manage the registry of policies."
)

Id = Annotated[str, typer.Argument(help="Id of a policy, such as p0001.")]
Reason = Annotated[str, typer.Option("--reason", help="Reason, for the history.")]
_BY = "command line"


@registry_app.command()
def activate(
    policy: Annotated[
        str, typer.Argument(help="Folder of a policy; without --registry also `embedded`, `fixed`, `uniform`.")
    ],
    registry: Annotated[
        Path | None,
        typer.Option(
            "--registry", envvar="DRAFTPICK_REGISTRY", help="Registry that the routers follow; default: --ray-address."
        ),
    ] = None,
    ray_address: RayAddress = None,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Put a policy into service without a restart: adds it to a registry and activates it there.

    Without a registry the policy goes to all router replicas of a Ray cluster, until they restart.

    Examples:

      draftpick policies activate runs/policy --registry /shared/policies
      draftpick policies activate fixed --ray-address auto
    """
    if registry is None:
        require("serve")
        from draftpick.deploy.launch.ray_serve import use_policy

        name = str(Path(policy).resolve()) if Path(policy).exists() else policy
        ids = use_policy(name, ray_address or "auto")
        say(as_json, {"policies": ids}, f"serving {', '.join(sorted(set(ids)))} on {len(ids)} router replica(s)")
        return
    if ray_address is not None:
        fail("give --registry or --ray-address, not both", 2)
    from draftpick.router.registry.registry import Registry

    policies = Registry(registry)
    id = policies.add(Path(policy), {"reason": reason}, _BY)
    policies.promote(id, _BY, reason)
    say(as_json, {"id": id, "active": True}, f"{id} is active")


@registry_app.command("list")
def show_all(registry: RegistryDir, as_json: Json = False) -> None:
    """List all policies with their stage: active, previous, candidate, retired.

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
def show(id: Id, registry: RegistryDir, as_json: Json = False) -> None:
    """Show one policy: its origin and its evaluation report.

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
    folder: Annotated[Path, typer.Argument(help="Folder of a policy, as written by `draftpick train`.")],
    registry: RegistryDir,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Copy a policy into the registry and print its id. The first policy of a registry becomes active.

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
        err.print(f"{id} is active: it is the first policy", highlight=False, style="dim")


@registry_app.command()
def canary(
    id: Id,
    share: Annotated[float, typer.Argument(min=0, max=1, help="Share of the requests; 0: shadow mode.")],
    registry: RegistryDir,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Give a policy a share of the requests, as the only candidate.

    Example: draftpick policies canary p0002 0.1 --registry /shared/policies
    """
    policies = _opened(registry)
    if share:
        policies.set_canary_share(id, share, _BY, reason, start=True)
        say(as_json, {"id": id, "share": share}, f"{id} decides {_percent(share)} of the requests")
    else:
        policies.start_shadow(id, _BY, reason)
        say(as_json, {"id": id, "share": share}, f"{id} is in shadow mode")


@registry_app.command()
def promote(id: Id, registry: RegistryDir, reason: Reason = "", as_json: Json = False) -> None:
    """Activate a policy of the registry.

    Example: draftpick policies promote p0002 --registry /shared/policies
    """
    policies = _opened(registry)
    policies.promote(id, _BY, reason)
    _say_active(as_json, policies, f"{id} is active")


@registry_app.command()
def pin(id: Id, registry: RegistryDir, reason: Reason = "", as_json: Json = False) -> None:
    """Activate a policy, and keep it active until `unpin`.

    Example: draftpick policies pin p0001 --registry /shared/policies
    """
    policies = _opened(registry)
    policies.pin(id, _BY, reason)
    _say_active(as_json, policies, f"{id} is active and pinned")


@registry_app.command()
def unpin(registry: RegistryDir, reason: Reason = "", as_json: Json = False) -> None:
    """Allow candidates to replace the active policy again.

    Example: draftpick policies unpin --registry /shared/policies
    """
    policies = _opened(registry)
    policies.unpin(_BY, reason)
    _say_active(as_json, policies, "nothing is pinned")


@registry_app.command()
def rollback(registry: RegistryDir, reason: Reason = "", as_json: Json = False) -> None:
    """Activate the previous policy, and reject the current one and any candidate.

    Example: draftpick policies rollback --registry /shared/policies --reason "slower on long prompts"
    """
    policies = _opened(registry)
    policies.rollback(_BY, reason)
    _say_active(as_json, policies, f"{policies.state().active} is active again")


@registry_app.command()
def history(registry: RegistryDir, as_json: Json = False) -> None:
    """List the last changes of the registry, the newest last.

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
    registry: RegistryDir,
    keep: Annotated[
        int, typer.Option("--keep", min=1, help="Number of retired and rejected policies to keep, the newest.")
    ],
    as_json: Json = False,
) -> None:
    """Delete old retired and rejected policies, with their folders.

    Example: draftpick policies prune --keep 20 --registry /shared/policies
    """
    gone = _opened(registry).prune(keep, _BY)
    say(as_json, {"removed": gone}, f"removed: {', '.join(gone) or 'none'}")


def _opened(path: Path) -> "Registry":
    """The registry in `path`. Raises `PolicyRejected` when there is none."""
    from draftpick.router.errors import PolicyRejected
    from draftpick.router.registry.registry import Registry, is_registry

    if not is_registry(path):
        raise PolicyRejected(f"{path} is not a registry (create one: draftpick policies add FOLDER --registry {path})")
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
