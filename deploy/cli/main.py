"""The command line: all command groups, and `draftpick demo | models | check-config`.

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
from draftpick.deploy.cli.former_flags import CommandGroup
from draftpick.deploy.cli.headroom import headroom_app
from draftpick.deploy.cli.keys import keys_app
from draftpick.deploy.cli.options import DEFAULT_SEED, Config, Json, JsonFile, OutputDir, Port, Seed
from draftpick.deploy.cli.plan import plan_app
from draftpick.deploy.cli.policies import registry_app
from draftpick.deploy.cli.profile import profile_app
from draftpick.deploy.cli.records import records_app
from draftpick.deploy.cli.report import report_app
from draftpick.deploy.cli.retrain import retrain_app
from draftpick.deploy.cli.serve import serve_app
from draftpick.deploy.cli.train import policy_app
from draftpick.deploy.cli.vllm_args import vllm_args_app
from draftpick.deploy.console import err, fail, out, progress_bar
from draftpick.deploy.extras import MissingExtra, require
from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.engines.errors import ConfigError, DraftpickError

app = typer.Typer(
    name="draftpick",
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Picks the right drafter for every request: a routing layer over vLLM engines that differ in their drafter.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or configuration; exceptions are in the help of "
    "the command. NO_COLOR=1 disables colours.",
)
app.add_typer(serve_app)
app.add_typer(policy_app)
app.add_typer(explain_app)
app.add_typer(plan_app)
app.add_typer(doctor_app)
app.add_typer(headroom_app)
app.add_typer(report_app)
app.add_typer(profile_app)
app.add_typer(retrain_app)
app.add_typer(vllm_args_app)
app.add_typer(drafters_app, name="drafters")
app.add_typer(keys_app, name="keys")
app.add_typer(registry_app, name="policies")
app.add_typer(records_app, name="records")


def _configure_stdout(commands: typer.Typer) -> None:
    """Join the lines of each help paragraph, except indented ones: typer keeps the line breaks of docstrings."""
    for command in commands.registered_commands:
        paragraphs = (inspect.getdoc(command.callback) or "").split("\n\n")
        command.help = "\n\n".join(p if p.startswith(" ") else p.replace("\n", " ") for p in paragraphs)
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            _configure_stdout(group.typer_instance)


def main() -> None:
    """Entry point: prints expected errors as one line, and sets the exit code."""
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
    """Validate a configuration without starting anything; prints each error with its field and a fix.

    Exit codes: 0 valid, possibly with warnings; 2 invalid.

    Example: draftpick check-config fleet.yaml
    """
    from draftpick.deploy.config import method_warnings, policy_warning, redacted, resolve
    from draftpick.router.config.former_fields import collected
    from draftpick.router.config.router_config import ConfigProblems

    try:
        with collected() as warnings:
            fleet = resolve(config)
    except ConfigError as error:
        problems = error.problems if isinstance(error, ConfigProblems) else [str(error)]
        if as_json:
            print(json.dumps({"valid": False, "problems": problems}))
            raise typer.Exit(2) from error
        raise
    warnings += method_warnings(fleet)
    if warning := policy_warning(fleet):
        warnings.append(warning)
    if as_json:
        found = {"valid": True, "warnings": warnings, "config": redacted(fleet)}
        print(json.dumps(found))
        return
    for warning in warnings:
        err.print(f"[yellow]warning:[/yellow] {warning}", highlight=False, soft_wrap=True)
    out.print(f"[green]valid[/green]: target {fleet.target.name}, engines {', '.join(fleet.names)}", highlight=False)


@app.command()
def models(
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Convert the embedded target now instead of on first use.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the models that ship with the package, and their paths.

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
    minutes: Annotated[float, typer.Option("--minutes", min=0.1, help="Time for measurements, in minutes.")] = 9.0,
    output_dir: OutputDir = Path("runs/demo"),
    json_file: JsonFile = None,
    port: Port = 8000,
    seed: Seed = DEFAULT_SEED,
) -> None:
    """Run everything once: start a fleet, collect, train, serve the new policy, compare it on held-out prompts.

    Example: draftpick demo --minutes 5 --output-dir runs/demo
    """
    require("serve", "train")
    from draftpick.deploy.config import resolve

    fleet = resolve(config)
    from draftpick.deploy.workflows.demo import run_demo

    prepare_models(fleet)
    run_demo(
        fleet, minutes=minutes, folder=output_dir, json_file=json_file, port=port, seed=seed, console=out,
        bars=progress_bar,
    )  # fmt: skip


_configure_stdout(app)

if __name__ == "__main__":
    main()
