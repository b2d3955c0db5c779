"""The command line of profiles: `draftpick profile`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID
from rich.table import Table

from draftpick.deploy.console import Json, err, out, progress_bar, say
from draftpick.deploy.extras import require
from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.engines.errors import ConfigError
from draftpick.engines.profile.profile import GREEDY, SAMPLED, Profile

profile_app = typer.Typer()


@profile_app.command()
def profile(
    config: Annotated[
        str | None, typer.Argument(help="A YAML file, or the name of a fleet; needless where --url is given.")
    ] = None,
    engine: Annotated[list[str], typer.Option(help="This engine of the fleet alone; may be repeated.")] = [],
    url: Annotated[
        list[str], typer.Option(help="NAME=URL of an engine that runs already and serves nobody; may be repeated.")
    ] = [],
    batches: Annotated[str, typer.Option(help="Requests that run at once: 1 and more.")] = "1,2,4,8",
    contexts: Annotated[str, typer.Option(help="Tokens that each has before its answer.")] = "128",
    output: Annotated[Path | None, typer.Option("--out", help="Also write each profile into this folder.")] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Draw a step's time by batch into this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what a decoding step takes on every engine, by the number of requests that run at once.

    A router that knows this can weigh load: alone on an engine, drafting is nearly free; among many requests each
    drafted token costs time. What text an engine accepts is learned, what a step takes is measured here, once for
    each engine and machine: engines find their profile again at every start, and show it to routers.

    Each engine is started alone and measured for about a minute. Nothing else may run on the machine meanwhile; what
    was measured on a busy one is not kept. An engine that somebody else runs finds its profile if it is measured on its
    own machine and was started with `--middleware draftpick.engines.vllm.middleware.VLLMPages`.

    Examples:

      draftpick profile embedded --engine plain --engine suffix
      draftpick profile fleet.yaml --batches 1,2,4,8,16,32 --contexts 64,1024 --plot steps.png
      draftpick profile --url mine=http://10.0.0.7:8000 --json
    """
    require("train")
    from draftpick.deploy.config import resolve
    from draftpick.deploy.workflows.profile import plot, save, subjects
    from draftpick.engines.profile.measure import ProfilePlan

    # A profile begins with one request alone.
    plan = ProfilePlan(tuple(sorted({1, *_numbers("--batches", batches)})), _numbers("--contexts", contexts))
    fleet = resolve(config) if config is not None else None
    todo = subjects(fleet, engine, url)
    if any(subject.url is None for subject in todo):
        require("serve")
        prepare_models(fleet)
    found, kept = _measured(todo, plan)
    if output is not None:
        save(found, output)
    if plot_file is not None:
        plot(found, plot_file)
    if as_json:
        say(True, {"profiles": {name: one.as_json() for name, one in found.items()}, "kept": kept}, "")
    else:
        _show(found)


def _measured(todo: Sequence[Any], plan: Any) -> tuple[dict[str, Profile], dict[str, str]]:
    """(profiles, the files of those that are kept) of all engines, one after another."""
    from draftpick.deploy.workflows.profile import measured
    from draftpick.engines.profile import cache as profile_cache
    from draftpick.engines.profile.on_startup import MAX_DISAGREEMENT

    found: dict[str, Profile] = {}
    kept: dict[str, str] = {}
    with progress_bar() as bar:
        for subject in todo:
            row = bar.add_task(f"{subject.name}: starting", total=100)
            with subject.running() as url:
                bar.update(row, description=subject.name)
                result = measured(subject.name, url, plan, partial(_advance, bar, row))
            found[subject.name] = result.profile
            if result.disagreement <= MAX_DISAGREEMENT:
                kept[subject.name] = str(profile_cache.write(result.profile))
                continue
            err.print(
                f"[yellow]warning:[/yellow] engine {subject.name} is not kept: its two passes differ by "
                f"{result.disagreement:.0%}; measure it again while the machine is quiet",
                highlight=False,
                soft_wrap=True,
            )
    return found, kept


def _advance(bar: Progress, row: TaskID, share: float) -> None:
    bar.update(row, completed=100 * share)


def _show(found: dict[str, Profile]) -> None:
    for name, one in found.items():
        table = Table("requests at once", title=f"{name}: ms of a step (at tau 1: a token)")
        for context in one.contexts:
            for half in ("greedy", "sampled"):
                table.add_column(f"{half}, {context} tokens", justify="right")
        for i, batch in enumerate(one.batches):
            cells = [one.step_s[half][i][j] for j in range(len(one.contexts)) for half in (GREEDY, SAMPLED)]
            table.add_row(str(batch), *(f"{1000 * step_s:.1f}" for step_s in cells))
        out.print(table)
        out.print(
            f"first token: {1000 * one.prefill_s:.0f} ms, and {1e6 * one.prefill_s_per_token:.0f} ms for 1,000 tokens; "
            f"at most {one.max_running} requests at once",
            highlight=False,
        )


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """A comma list of numbers from 1 on, sorted."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise ConfigError(option, f"{text!r} is no list of numbers from 1 on", f"write {option} 1,2,4,8")
    return tuple(sorted(set(map(int, parts))))
