"""`draftpick profile`: step times of engines."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID
from rich.table import Table

from draftpick.deploy.cli.options import Json, Plot
from draftpick.deploy.console import err, out, progress_bar, say
from draftpick.deploy.extras import require
from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.engines.errors import ConfigError
from draftpick.engines.profile.profile import GREEDY, MODES, Profile

profile_app = typer.Typer()


@profile_app.command()
def profile(
    config: Annotated[
        str | None, typer.Argument(help="A YAML file, or the name of a fleet; optional with --url.")
    ] = None,
    engine: Annotated[
        list[str], typer.Option("--engine", help="Engine of the fleet to profile; default: all; repeatable.")
    ] = [],
    url: Annotated[
        list[str], typer.Option("--url", help="NAME=URL of a running engine without other traffic; repeatable.")
    ] = [],
    batch_sizes: Annotated[
        str, typer.Option("--batch-sizes", help="Comma-separated numbers of concurrent requests.")
    ] = "1,2,4,8",
    context_lengths: Annotated[
        str, typer.Option("--context-lengths", help="Comma-separated prompt lengths, in tokens.")
    ] = "128",
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", help="Also write each profile to this folder.")
    ] = None,
    plot_file: Plot = None,
    as_json: Json = False,
) -> None:
    """Measure the duration of a decoding step on every engine, by batch size and context length.

    With profiles the router takes load into account: drafting is nearly free for a single request, and costs time in a
    large batch. Engines measure a short profile themselves at their first start on a machine (`deployment.profile`);
    this command measures a longer one, which replaces it.

    Starts each engine alone and measures for about a minute. Leave the machine otherwise idle: unstable measurements
    are discarded. For an engine that runs elsewhere, run the command on its machine, and start the engine with
    `--middleware draftpick.engines.vllm.middleware.VLLMPages`.

    Examples:

      draftpick profile embedded --engine plain --engine suffix
      draftpick profile fleet.yaml --batch-sizes 1,2,4,8,16,32 --context-lengths 64,1024 --plot steps.png
      draftpick profile --url mine=http://10.0.0.7:8000 --json
    """
    require("train")
    from draftpick.deploy.config import resolve
    from draftpick.deploy.workflows.profile import plot, save, subjects
    from draftpick.engines.profile.measure import ProfilePlan

    sizes = {1, *_numbers("--batch-sizes", batch_sizes)}  # a profile starts at batch size 1
    plan = ProfilePlan(tuple(sorted(sizes)), _numbers("--context-lengths", context_lengths))
    fleet = resolve(config) if config is not None else None
    todo = subjects(fleet, engine, url)
    if any(subject.url is None for subject in todo):
        require("serve")
        prepare_models(fleet)
    found, kept = _measured(todo, plan)
    if output_dir is not None:
        save(found, output_dir)
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
    from draftpick.engines.profile.keeper import MAX_DISAGREEMENT

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
                f"[yellow]warning:[/yellow] profile of {subject.name} discarded: its two passes differ by "
                f"{result.disagreement:.0%}; measure it again on an idle machine",
                highlight=False,
                soft_wrap=True,
            )
    return found, kept


def _advance(bar: Progress, row: TaskID, share: float) -> None:
    bar.update(row, completed=100 * share)


def _show(found: dict[str, Profile]) -> None:
    for name, one in found.items():
        table = Table("concurrent requests", title=f"{name}: ms per step (at tau 1: per token)")
        for context in one.contexts:
            for mode in MODES:
                table.add_column(f"{mode}, {context} tokens", justify="right")
        for batch in one.batches:
            cells = [one.step(batch, context, mode) for context in one.contexts for mode in range(len(MODES))]
            table.add_row(str(batch), *(f"{1000 * step_s:.1f}" for step_s in cells))
        out.print(table)
        if one.verify_s:
            steps_s = ", ".join(f"{1000 * step_s:.1f}" for step_s in one.verify_s[GREEDY])
            out.print(f"ms per greedy step of one request by verified tokens, from 1: {steps_s}", highlight=False)
        out.print(
            f"first token: {1000 * one.prefill_s:.0f} ms, and {1e6 * one.prefill_s_per_token:.0f} ms for 1,000 tokens; "
            f"at most {one.max_running} concurrent requests",
            highlight=False,
        )


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """Parse comma-separated positive integers, sorted."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise ConfigError(option, f"{text!r} is not a list of positive numbers", f"write {option} 1,2,4,8")
    return tuple(sorted(set(map(int, parts))))
