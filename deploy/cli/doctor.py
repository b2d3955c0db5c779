"""The command line of advice: `draftpick doctor`, and `draftpick doctor --headroom`."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from draftpick.deploy.console import Json, Seed, fail, out, progress_bar
from draftpick.deploy.extras import require
from draftpick.engines.errors import ConfigError

if TYPE_CHECKING:
    from draftpick.deploy.doctor import Finding
    from draftpick.deploy.workflows.headroom import HeadroomOptions, HeadroomResult
    from draftpick.policy_training.evaluation.evaluate import Interval

doctor_app = typer.Typer()

_COLOURS = {"problem": "red", "warning": "yellow", "note": "cyan", "ok": "green"}
_HEADROOM_ONLY = ("records", "data", "prompts", "profiles", "rate", "plot")


@doctor_app.command()
def doctor(
    config: Annotated[
        str | None, typer.Argument(help="A YAML file, or the name of a fleet; default: embedded.")
    ] = None,
    url: Annotated[list[str], typer.Option("--url", help="NAME=URL of a running engine to ask; repeatable.")] = [],
    host: Annotated[str, typer.Option(help="Where the router is to listen.")] = "127.0.0.1",
    patience: Annotated[float, typer.Option(min=0.1, help="Longest wait for a page of an engine, in seconds.")] = 5.0,
    everything: Annotated[bool, typer.Option("--all", help="Also list the checks that found nothing.")] = False,
    headroom: Annotated[bool, typer.Option("--headroom", help="Say instead what routing would save.")] = False,
    records: Annotated[str | None, typer.Option(help="Headroom: folder or URL of the router's records.")] = None,
    data: Annotated[list[Path], typer.Option(help="Headroom: dataset of `collect` or `label`; repeatable.")] = [],
    prompts: Annotated[Path | None, typer.Option(help="Headroom: JSONL of prompts, which are replayed first.")] = None,
    profiles: Annotated[Path | None, typer.Option(help="Headroom: folder of profiles, <engine>.json each.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Headroom: requests a second, for --profiles.")] = None,
    worth: Annotated[float, typer.Option(min=0, max=1, help="Headroom: the least saved time that pays.")] = 0.03,
    learner: Annotated[str, typer.Option(help="Headroom: name of the learner; a wrong one lists them.")] = "tau_cost",
    n: Annotated[int, typer.Option("-n", min=40, help="Headroom: most prompts to replay.")] = 400,
    max_tokens: Annotated[int, typer.Option(min=2, help="Headroom: longest answer to a prompt.")] = 64,
    sampled_share: Annotated[float, typer.Option(min=0, max=1, help="Headroom: share of prompts sampled.")] = 0.5,
    output: Annotated[Path, typer.Option("--out", help="Headroom: where replayed prompts are kept.")] = Path(
        "runs/headroom"
    ),
    plot: Annotated[Path | None, typer.Option(help="Headroom: write a picture to this file.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say what is wrong with a fleet, or soon will be, and its cure; with --headroom, what routing would save.

    Nothing is started. Engines of kind `url`, and those of --url, are asked for their pages and one short answer.

    With --headroom the verdict is `worth it`, `not worth it` or `cannot tell`, against the best single engine, by
    requests that the judged policy has not seen: of records (best with shadows), of datasets, or of prompts.

    Exit codes: 0 fine, or a verdict, whichever; 1 problems found; 2 wrong usage or configuration.

    Examples:

      draftpick doctor fleet.yaml
      draftpick doctor --url plain=http://10.0.0.7:8000 --url suffix=http://10.0.0.8:8000
      draftpick doctor --headroom --records records
    """
    given = {"records": records, "data": data, "prompts": prompts, "profiles": profiles, "rate": rate, "plot": plot}
    if not headroom:
        if extra := [name for name in _HEADROOM_ONLY if given[name]]:
            fail(f"--{extra[0]} goes with --headroom", 2)
        raise typer.Exit(_examined(config, url, host, patience, everything, as_json))
    if url:
        fail("--url goes without --headroom", 2)
    require("train")
    from draftpick.deploy.workflows.headroom import HeadroomOptions

    asked = HeadroomOptions(
        config, records, data, prompts, profiles, rate, worth, learner, n, max_tokens, sampled_share, output, seed
    )
    _judged(asked, plot, as_json)


def _examined(
    config: str | None, urls: Sequence[str], host: str, patience_s: float, everything: bool, as_json: bool
) -> int:
    """Ask every check, show what they found, and give the exit code."""
    from draftpick.deploy.doctor import examine
    from draftpick.deploy.doctor.findings import LEVELS
    from draftpick.deploy.doctor.inputs import addresses_of, read_context

    try:
        case = read_context(config, addresses_of(urls), host, patience_s)
    except ConfigError as error:
        if not as_json:
            raise
        print(json.dumps({"valid": False, "problems": getattr(error, "problems", [str(error)])}))
        return 2
    found = sorted(examine(case), key=lambda finding: LEVELS.index(finding.level))
    counts = Counter(finding.level for finding in found)
    if as_json:
        shown = {"valid": True, "counts": {level: counts[level] for level in LEVELS}}
        print(json.dumps({**shown, "findings": list(map(asdict, found))}))
    else:
        _show(found, everything)
        said = ", ".join(f"{counts[level]} {level}{'s' * (level != 'ok' and counts[level] != 1)}" for level in LEVELS)
        out.print(f"{len(case.config.arms)} engines, {len(case.running)} asked: {said}", highlight=False)
    return int(counts["problem"] > 0)


def _show(found: "Sequence[Finding]", everything: bool) -> None:
    table = Table("", Column("where", overflow="fold", ratio=1), Column("", ratio=2), show_lines=True, expand=True)
    for one in found:
        if one.level == "ok" and not everything:
            continue
        cure = f"\n[bold]{escape(one.cure)}[/bold]" if one.cure else ""
        why = f"\n[dim]{escape(one.why)}[/dim]" if one.why else ""
        colour = _COLOURS[one.level]
        table.add_row(
            f"[{colour}]{one.level}[/{colour}]", escape(one.where or one.check), escape(one.what) + cure + why
        )
    if table.row_count:
        out.print(table)


def _judged(options: "HeadroomOptions", plot: Path | None, as_json: bool) -> None:
    """Judge the requests, show the verdict, and write the picture."""
    from draftpick.deploy.workflows.headroom import FITS, evaluate_headroom
    from draftpick.deploy.workflows.headroom import as_json as for_a_program

    with progress_bar() as bar:
        row = bar.add_task("judging", total=FITS)
        found = evaluate_headroom(options, lambda: bar.advance(row))
    if plot is not None:
        from draftpick.deploy.plots.headroom import plot_headroom

        plot_headroom(found.evidence.found, options.worth, plot)
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
    table = Table("engine", "time, the best single one is 1", "would get", "fastest on", "tokens a step")
    for name, arm in sorted(evidence.found.arms.items(), key=lambda item: item[1].time.value):
        wins = "" if arm.wins is None else f"{arm.wins:.0%}"
        table.add_row(name, _between(arm.time, ".3f"), f"{arm.share:.0%}", wins, f"{arm.tau:.2f}")
    out.print(table)
    kinds = Table("requests", "how many", "saved by routing", "by an oracle")
    for name, gain in {"all": evidence.found.gain, **evidence.found.halves, **evidence.found.slices}.items():
        oracle = "" if gain.oracle is None else f"{gain.oracle.value:.1%}"
        kinds.add_row(name, str(gain.n), _between(gain.routed, ".1%"), oracle)
    out.print(kinds)
    left_out = ", ".join(f"{count} {reason}" for reason, count in found.excluded.items())
    out.print(found.source + (f"; left out: {left_out}" if left_out else ""), highlight=False)


def _between(one: "Interval", form: str) -> str:
    return f"{one.value:{form}}  ({one.low:{form}} to {one.high:{form}})"
