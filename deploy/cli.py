"""The command line: `draftpick serve | demo | models | check-config`, policies, drafters and keys.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
"""

import json
import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.progress import Progress
from rich.table import Table

from deploy.cli_drafters import drafters_app
from deploy.cli_keys import keys_app
from deploy.cli_policy import policy_app
from deploy.cli_report import report_app
from deploy.console import (
    Config,
    Json,
    Port,
    Seed,
    err,
    fail,
    out,
    prepare_models,
    progress_bar,
)
from engines.errors import ConfigError, DraftpickError

app = typer.Typer(
    name="draftpick",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Picks the right drafter for every request: a routing layer over vLLM engines that differ in their drafter.",
)
app.add_typer(policy_app)
app.add_typer(report_app)
app.add_typer(drafters_app, name="drafters")
app.add_typer(keys_app, name="keys")


_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def main() -> None:
    """Entry point: errors of ours become one line and an exit code."""
    logging.captureWarnings(True)
    try:
        app()
    except ConfigError as error:
        fail(str(error), 2)
    except DraftpickError as error:
        fail(str(error), 1)
    except httpx.HTTPError as error:
        fail(f"{error.request.url}: {error} (is the router running at the --url?)", 1)
    except (ValueError, OSError) as error:
        fail(str(error), 1)


def _show_start(bar: Progress) -> Callable[[dict[str, str]], None]:
    tasks: dict[str, Any] = {}

    def show(states: dict[str, str]) -> None:
        for name, state in states.items():
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=1)
            bar.update(tasks[name], description=f"{name}: {state}", completed=1 if state == "ready" else 0)

    return show


@app.command()
def serve(
    config: Config = "embedded",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    engines: Annotated[str, typer.Option(help="These engines of the fleet alone, by name: plain,suffix")] = "",
    policy: Annotated[str | None, typer.Option(help="Replaces router.policy of the configuration.")] = None,
    address: Annotated[str | None, typer.Option(help="Join this Ray cluster (`auto`: the one here).")] = None,
) -> None:
    """Start engines and router, and serve until Ctrl-C.

    Example: draftpick serve --config embedded --port 8000
    """
    from deploy.config import policy_warning, resolve, with_engines, with_router
    from router.keys import Keyring

    fleet = resolve(config)
    if engines:
        fleet = with_engines(fleet, [name.strip() for name in engines.split(",")])
    if policy is not None:
        fleet = with_router(fleet, policy=policy)
    if warning := policy_warning(fleet):
        err.print(
            f"[yellow]warning:[/yellow] {warning}; engine {fleet.router.default_engine!r} serves", highlight=False
        )
    if host not in _LOOPBACK and not Keyring(fleet.router.keys):
        err.print(
            f"[yellow]warning:[/yellow] {host} is open to the network, and no keys are asked for "
            "(draftpick keys new NAME, then router.keys.file)",
            highlight=False,
        )
    prepare_models(fleet)
    from deploy.fleet import running

    stop = threading.Event()
    with progress_bar() as bar, running(fleet, host=host, port=port, address=address, progress=_show_start(bar)) as url:
        bar.stop()
        # Only now: Ray puts its own handlers in place when it starts, and those end the process without a drain.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        _announce(url, fleet.target.name, list(fleet.arms))
        stop.wait()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler)
        err.print("draining and stopping ... (once more: stop at once)")


def _announce(url: str, model: str, arms: list[str]) -> None:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "What is 12 * 7?"}], "max_tokens": 64})
    out.print(
        f"\n[bold green]ready[/bold green] {url}/v1   model {model}   engines {', '.join(arms)}",
        highlight=False,
        soft_wrap=True,
    )
    out.print("\nTry:\n", highlight=False)
    print(f"  curl -i {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'\n", flush=True)


@app.command("check-config")
def check_config(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a fleet.")], as_json: Json = False
) -> None:
    """Check a configuration without starting anything; says the field and the cure for each error."""
    from deploy.config import policy_warning, redacted, resolve
    from router.config import ConfigProblems

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
    """List the models that come with the project and where they lie."""
    from engines.config import EMBEDDED, Engine, FleetConfig, Target
    from engines.embedded import ENCODER_NAME, TARGET_NAME, cache_dir, encoder_path, shipped_drafters

    if prepare:
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
    """The whole story: collect on the live fleet, train, serve the new policy, compare it on held-out prompts."""
    from deploy.config import resolve

    fleet = resolve(config)
    from deploy.demo import run_demo

    prepare_models(fleet)
    run_demo(
        fleet, minutes=minutes, folder=output, json_file=json_file, port=port, seed=seed, console=out, bars=progress_bar
    )


if __name__ == "__main__":
    main()
