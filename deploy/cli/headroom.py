"""`draftpick headroom`: what routing would save."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from draftpick.deploy.cli.options import (
    DEFAULT_SEED,
    Data,
    DraftedTokens,
    Json,
    Learner,
    OneSplit,
    OnOverlap,
    Plot,
    Prompts,
    SampledShare,
    Seed,
)
from draftpick.deploy.console import out, progress_bar
from draftpick.deploy.extras import require

if TYPE_CHECKING:
    from draftpick.deploy.workflows.headroom import HeadroomOptions, HeadroomResult
    from draftpick.policy_training.evaluation.evaluate import Interval

headroom_app = typer.Typer()

RecordsUrl = Annotated[str | None, typer.Option("--records", help="Folder or fsspec URL of the router's records.")]
Profiles = Annotated[Path | None, typer.Option("--profiles", help="Folder of engine profiles, <engine>.json each.")]
Rate = Annotated[
    float | None, typer.Option("--rate", min=0.001, help="Requests per second to simulate; needs --profiles.")
]
MinGain = Annotated[
    float, typer.Option("--min-gain", min=0, max=1, help="Smallest share of time saved that is worth routing.")
]


@headroom_app.command()
def headroom(
    config: Annotated[
        str | None, typer.Argument(help="The fleet: a YAML file, or a name; default for --prompts: embedded.")
    ] = None,
    records: RecordsUrl = None,
    data: Data = [],
    prompts: Prompts = [],
    split: OneSplit = None,
    overlap: OnOverlap = "fail",
    profiles: Profiles = None,
    rate: Rate = None,
    min_gain: MinGain = 0.03,
    learner: Learner = "tau_cost",
    n: Annotated[int, typer.Option("-n", min=40, help="Maximum number of --prompts.")] = 400,
    max_tokens: DraftedTokens = 64,
    sampled_share: SampledShare = 0.5,
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Folder for the labelled --prompts.")] = Path(
        "runs/headroom"
    ),
    plot: Plot = None,
    seed: Seed = DEFAULT_SEED,
    as_json: Json = False,
) -> None:
    """Estimate the time that routing would save over the best single engine: worth it, not worth it, or cannot tell.

    Reads records (best with shadow requests), datasets, or prompts, which are labelled first. Each request is judged
    by a policy that was trained without it. With --profiles and --rate the fleet is also simulated under load.

    Exit codes: 0 for every verdict, 1 failed, 2 wrong usage or configuration.

    Examples:

      draftpick headroom --records records
      draftpick headroom fleet.yaml --prompts prompts.jsonl
      draftpick headroom --data runs/live --profiles profiles --rate 20
    """
    require("train")
    from draftpick.deploy.workflows.headroom import HeadroomOptions

    options = HeadroomOptions(
        config,
        records,
        data,
        prompts,
        profiles,
        rate,
        min_gain,
        learner,
        n,
        max_tokens,
        sampled_share,
        output_dir,
        seed,
        split,
        overlap,
    )
    _judged(options, plot, as_json)


def _judged(options: "HeadroomOptions", plot: Path | None, as_json: bool) -> None:
    """Evaluate the requests, print the verdict, and write the plot."""
    from draftpick.deploy.workflows.headroom import FITS, evaluate_headroom
    from draftpick.deploy.workflows.headroom import as_json as for_a_program

    with progress_bar() as bar:
        row = bar.add_task("judging", total=FITS)
        found = evaluate_headroom(options, lambda: bar.advance(row))
    if plot is not None:
        from draftpick.deploy.plots.headroom import plot_headroom

        plot_headroom(found.evidence.found, options.min_gain, plot)
    if as_json:
        print(json.dumps(for_a_program(found)))
    else:
        _advise(found)


def _advise(found: "HeadroomResult") -> None:
    from draftpick.policy_training.headroom.verdict import crossovers, describe, reasons_against

    evidence, colours = found.evidence, {"worth it": "green", "not worth it": "red", "cannot tell": "yellow"}
    colour = colours[evidence.verdict]
    out.print(f"[bold {colour}]{evidence.verdict}[/bold {colour}]: {describe(evidence)}", highlight=False)
    for title, lines in (("against it", reasons_against(evidence)), ("under load", crossovers(evidence))):
        for line in lines:
            out.print(f"{title}: {line}", highlight=False)
    table = Table("engine", "time, relative to the best engine", "would get", "fastest on", "tokens per step")
    for name, arm in sorted(evidence.found.arms.items(), key=lambda item: item[1].time.value):
        wins = "" if arm.wins is None else f"{arm.wins:.0%}"
        table.add_row(name, _between(arm.time, ".3f"), f"{arm.share:.0%}", wins, f"{arm.tau:.2f}")
    out.print(table)
    kinds = Table("requests", "number", "saved by routing", "by an oracle")
    for name, gain in {"all": evidence.found.gain, **evidence.found.halves, **evidence.found.slices}.items():
        oracle = "" if gain.oracle is None else f"{gain.oracle.value:.1%}"
        kinds.add_row(name, str(gain.n), _between(gain.routed, ".1%"), oracle)
    out.print(kinds)
    left_out = ", ".join(f"{count} {reason}" for reason, count in found.excluded.items())
    out.print(found.source + (f"; left out: {left_out}" if left_out else ""), highlight=False)


def _between(one: "Interval", form: str) -> str:
    return f"{one.value:{form}}  ({one.low:{form}} to {one.high:{form}})"
