"""The command line: `draftpick demo | models | check-config`, and the parts in the other `cli_*.py`.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
"""

import inspect
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.table import Table

from draftpick.deploy.cli.doctor import doctor_app
from draftpick.deploy.cli.drafters import drafters_app
from draftpick.deploy.cli.explain import explain_app
from draftpick.deploy.cli.keys import keys_app
from draftpick.deploy.cli.plan import plan_app
from draftpick.deploy.cli.policies import registry_app
from draftpick.deploy.cli.profile import profile_app
from draftpick.deploy.cli.report import report_app
from draftpick.deploy.cli.retrain import retrain_app
from draftpick.deploy.cli.serve import serve_app
from draftpick.deploy.cli.train import policy_app
from draftpick.deploy.console import Config, Json, Port, Seed, err, fail, out, progress_bar
from draftpick.deploy.extras import MissingExtra, require
from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.engines.errors import ConfigError, DraftpickError

app = typer.Typer(
    name="draftpick",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Picks the right drafter for every request: a routing layer over vLLM engines that differ in their drafter.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or configuration; a command that has others says so in its "
    "help. NO_COLOR=1 switches colours off.",
)
app.add_typer(serve_app)
app.add_typer(policy_app)
app.add_typer(explain_app)
app.add_typer(plan_app)
app.add_typer(doctor_app)
app.add_typer(report_app)
app.add_typer(profile_app)
app.add_typer(retrain_app)
app.add_typer(drafters_app, name="drafters")
app.add_typer(keys_app, name="keys")
app.add_typer(registry_app, name="policies")


def _configure_stdout(commands: typer.Typer) -> None:
    """Let the paragraphs of help fill their lines, but for indented ones: typer would keep the breaks of docstrings."""
    for command in commands.registered_commands:
        paragraphs = (inspect.getdoc(command.callback) or "").split("\n\n")
        command.help = "\n\n".join(p if p.startswith(" ") else p.replace("\n", " ") for p in paragraphs)
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            _configure_stdout(group.typer_instance)


def main() -> None:
    """Entry point: errors of ours become one line and an exit code."""
    logging.captureWarnings(True)
    try:
        app()
    except MissingExtra as error:
        fail(f"`{_command(sys.argv[1:])}` {error}", 2)
    except ConfigError as error:
        fail(str(error), 2)
    except DraftpickError as error:
        fail(str(error), 1)
    except httpx.HTTPError as error:
        fail(f"{error.request.url}: {error} (is the router running at the --url?)", 1)
    except (ValueError, OSError) as error:
        fail(str(error), 1)


def _command(words: Sequence[str]) -> str:
    """The command that a command line calls, without its arguments."""
    groups = {group.name for group in app.registered_groups}
    return " ".join(["draftpick", *words[: 2 if words[0] in groups else 1]])


@app.command("check-config")
def check_config(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a fleet.")], as_json: Json = False
) -> None:
    """Check a configuration without starting anything; says the field and the cure for each error.

    Exit codes: 0 valid, perhaps with a warning; 2 wrong.

    Example: draftpick check-config fleet.yaml
    """
    from draftpick.deploy.config import policy_warning, redacted, resolve
    from draftpick.router.config.router_config import ConfigProblems

    try:
        fleet = resolve(config)
    except ConfigError as error:
        problems = error.problems if isinstance(error, ConfigProblems) else [str(error)]
        if as_json:
            print(json.dumps({"valid": False, "problems": problems}))
            raise typer.Exit(2) from error
        raise
    warning = policy_warning(fleet)
    if as_json:
        found = {"valid": True, "warnings": [warning] if warning else [], "config": redacted(fleet)}
        print(json.dumps(found))
        return
    if warning:
        err.print(f"[yellow]warning:[/yellow] {warning}", highlight=False, soft_wrap=True)
    out.print(f"[green]valid[/green]: target {fleet.target.name}, engines {', '.join(fleet.arms)}", highlight=False)


@app.command()
def models(
    prepare: Annotated[bool, typer.Option("--prepare", help="Prepare the embedded target now.")] = False,
    as_json: Json = False,
) -> None:
    """List the models that come with the project and where they lie.

    Example: draftpick models --prepare
    """
    from draftpick.engines.cache_dir import cache_dir
    from draftpick.engines.config import EMBEDDED, Engine, FleetConfig, Target
    from draftpick.engines.models.embedded import ENCODER_NAME, TARGET_NAME, encoder_path, shipped_drafters

    if prepare:
        require("train")
        prepare_models(FleetConfig(target=Target(source=EMBEDDED), engines=(Engine(name="plain"),)))
    target = cache_dir() / TARGET_NAME
    rows = [
        {"role": "target", "name": TARGET_NAME, "path": str(target), "ready": (target / "config.json").is_file()},
        {"role": "encoder", "name": ENCODER_NAME, "path": str(encoder_path()), "ready": True},
        *({"role": "drafter", "name": f"embedded:{p.name}", "path": str(p), "ready": True} for p in shipped_drafters()),
    ]
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("role", "name", "ready", "path")
    for row in rows:
        table.add_row(str(row["role"]), str(row["name"]), "yes" if row["ready"] else "on first use", str(row["path"]))
    out.print(table)


@app.command()
def demo(
    config: Config = "embedded",
    minutes: Annotated[float, typer.Option(min=0.1, help="Time for collecting and comparing prompts.")] = 9.0,
    output: Annotated[Path, typer.Option("--out", help="Folder of what the demo writes.")] = Path("runs/demo"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
    port: Port = 8000,
    seed: Seed = 0,
) -> None:
    """The whole story: collect on the live fleet, train, serve the new policy, compare it on held-out prompts.

    Example: draftpick demo --minutes 5 --out runs/demo
    """
    require("serve", "train")
    from draftpick.deploy.config import resolve

    fleet = resolve(config)
    from draftpick.deploy.workflows.demo import run_demo

    prepare_models(fleet)
    run_demo(
        fleet, minutes=minutes, folder=output, json_file=json_file, port=port, seed=seed, console=out, bars=progress_bar
    )


_configure_stdout(app)

if __name__ == "__main__":
    main()
