"""The command line of policies: `draftpick collect | label | dataset | train | evaluate | use | encoder`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from draftpick.deploy.console import (
    Config,
    Json,
    Port,
    Prompts,
    Seed,
    Url,
    fail,
    load_prompts,
    out,
    progress_bar,
    say,
)
from draftpick.deploy.extras import require

policy_app = typer.Typer()

Data = Annotated[list[Path], typer.Option("--data", help="Dataset of `collect` or `label`; may be repeated.")]
SampledShare = Annotated[float, typer.Option(min=0, max=1, help="Share of prompts at temperature 0.7.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Longest answer.")]
Homes = Annotated[
    list[str],
    typer.Option("--home", help="ARM=PROMPTS its drafter was made for, e.g. code=generated:code; may be repeated."),
]
Default = Annotated[str, typer.Option(help="The default engine.")]
Checkpoints = Annotated[
    str | None,
    typer.Option(
        help="Folder or URL, seen by all workers, for what they have trained so far; default: beside the result."
    ),
]
_PART = 8  # prompts measured before they are written
_ENCODER_SEED = 20_000  # its texts are nobody else's


@policy_app.command()
def collect(
    output: Annotated[Path, typer.Option("--out", help="Folder of the dataset; what it holds is not measured again.")],
    url: Url = "http://127.0.0.1:8000",
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="Start this fleet for the measurement; else use --url.")
    ] = None,
    prompts: Prompts = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of prompts.")] = 60,
    sampled_share: SampledShare = 0.5,
    max_tokens: MaxTokens = 64,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once, all on one engine at a time.")] = 1,
    port: Port = 8000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Send prompts to every engine in randomised order and measure acceptance, TTFT and TPOT.

    What was measured before stays; where the router's features have changed since, its requests get the new ones.

    Exit codes: 0 done, even where some requests failed; 1 failed, as where all did; 2 wrong usage or configuration.

    Example: draftpick collect --config embedded --out runs/live -n 60
    """
    require("train", *(["serve"] if config else []))
    from draftpick.deploy.workflows.collect import fleet_at, measure_parts
    from draftpick.deploy.workflows.featurizers import featurizers
    from draftpick.policy_training.data.contexts import refresh_contexts
    from draftpick.policy_training.data.dataset import DatasetParts, load

    chosen, parts, made = load_prompts(prompts, n, seed, sampled_share, max_tokens), DatasetParts(output), featurizers()
    renewed = refresh_contexts(output, chosen, made)
    todo = parts.pending(chosen, max(_PART, 3 * concurrency))
    sent, failed = 0, 0
    if todo:
        with progress_bar() as bar, fleet_at(config, url, port, bar) as base:
            sent, failed = measure_parts(base, todo, parts, made, concurrency, seed, bar)
    arms = load(output).arms
    kept = len(chosen) - sum(map(len, todo))
    result = {"measurements": sent, "failed": failed, "kept": kept, "renewed": renewed, "arms": arms}
    there = f"{kept} prompts were there already{_renewed(renewed)}"
    say(as_json, {**result, "out": str(output)}, f"{sent} measurements ({failed} failed) in {output}; {there}")
    if sent and failed == sent:
        raise typer.Exit(1)


@policy_app.command()
def label(
    output: Annotated[Path, typer.Option("--out", help="Folder of the dataset; what it holds is not labelled again.")],
    config: Config = "embedded",
    prompts: Prompts = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of prompts.")] = 2000,
    sampled_share: SampledShare = 0.5,
    max_tokens: MaxTokens = 64,
    reworded: Annotated[bool, typer.Option(help="Ask for the same tasks in other words.")] = False,
    answers: Annotated[int, typer.Option(min=1, help="Answers to each sampled prompt, whose mean counts.")] = 1,
    lengths: Annotated[bool, typer.Option(help="Replay other draft lengths, too; without, in half the time.")] = True,
    alone: Annotated[int, typer.Option(min=0, help="Liken so many tokens that each drafter says alone.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Ray Data workers of a cluster; 0: in this process.")] = 0,
    seed: Seed = 1,
    as_json: Json = False,
) -> None:
    """Label prompts by replay: one answer of the target tells what every engine would have accepted of it.

    No engine of the fleet has to run, and an interrupted run goes on where it was. Where the router's features have
    changed since, requests that are labelled already get the new ones. Times come from live measurements: give both to
    `train`.

    Example: draftpick label --out runs/replayed -n 2000
    """
    require("train", *(["serve"] if workers else []))
    from draftpick.deploy.config import resolve
    from draftpick.deploy.workflows.label import label_prompts
    from draftpick.engines.errors import ConfigError
    from draftpick.policy_training.workloads import reword

    chosen = load_prompts(prompts, n, seed, sampled_share, max_tokens)
    if reworded:
        chosen = [reword(prompt, seed) for prompt in chosen]
    try:
        labelled = label_prompts(
            resolve(config),
            chosen,
            output,
            seed=seed,
            answers=answers,
            alone_tokens=alone,
            lengths=lengths,
            workers=workers,
        )
    except ConfigError as error:
        fail(f"{config}: {error}", 2)
    note = _renewed(labelled.renewed) + (f"; left out: {', '.join(labelled.left_out)}" if labelled.left_out else "")
    text = f"{labelled.prompts} prompts labelled under {len(labelled.engines)} engines in {output}{note}"
    say(as_json, {**asdict(labelled), "out": str(output)}, text)


@policy_app.command("dataset")
def show_dataset(
    paths: Annotated[list[Path], typer.Argument(help="Datasets, or folders of records with --records.")],
    records: Annotated[bool, typer.Option(help="The folders hold the router's records.")] = False,
    as_json: Json = False,
) -> None:
    """Print the data card: what a dataset covers, by arm and by kind of prompt, and what was left out.

    Example: draftpick dataset runs/live runs/replayed
    """
    require("train")
    from draftpick.policy_training.data.data_card import card
    from draftpick.policy_training.data.dataset import Dataset, load
    from draftpick.policy_training.data.from_records import from_records

    data = sum(map(from_records, paths), Dataset(())) if records else load(*paths)
    found = card(data)
    if as_json:
        print(json.dumps(found))
        return
    out.print(f"{found['requests']} requests, featurizers {', '.join(found['featurizers']) or 'none'}", highlight=False)
    for title, rows in (("arm", found["arms"]), ("kind", found["kinds"])):
        table = Table(title, *next(iter(rows.values())))
        for name, row in rows.items():
            table.add_row(name, *(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
        out.print(table)
    if found["dropped"]:
        out.print(f"left out: {found['dropped']}", highlight=False)


@policy_app.command()
def train(
    output: Annotated[Path, typer.Option("--out", help="Folder of the policy.")],
    data: Data = [],
    from_records: Annotated[Path | None, typer.Option(help="Learn from the router's records in this folder.")] = None,
    learner: Annotated[str, typer.Option(help="Name of the learner; a wrong one lists them.")] = "tau_cost",
    default: Default = "plain",
    featurizer: Annotated[str | None, typer.Option(help="Whose contexts; default: the lightest in the data.")] = None,
    homes: Homes = [],
    workers: Annotated[
        int, typer.Option(min=0, help="Ray Train workers that fit a network together; 0: in this process.")
    ] = 0,
    checkpoints: Checkpoints = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a policy on measurements, on replayed labels with live measurements, or on the router's own records.

    With --home the default learner knows what drafters were made for, before anything like it was measured. Networks
    (mlp_regression, soft_label, exact, reinforce) may be fitted on --workers of a Ray cluster; run again, a run that
    was killed goes on.

    Example: draftpick train --data runs/live --data runs/replayed --out runs/policy
    """
    require("train", *(["serve"] if workers else []))
    from draftpick.deploy.workflows.train import TrainOptions, train_on_data, train_on_records
    from draftpick.policy_training.learners import learner as learner_of

    if bool(data) == (from_records is not None):
        fail("give either --data or --from-records", 2)
    chosen = learner_of(learner)
    if workers and not chosen.on_workers:
        fail(f"--workers: {learner} is no network; it is fitted in one process", 2)
    ray = workers_of(workers, checkpoints, output.parent / f".{output.name}-training")
    with progress_bar() as bar:
        row = bar.add_task("training", total=1.0)

        def told(done: int, total: int) -> None:
            bar.update(row, completed=done / total)

        asked = TrainOptions(chosen, default, featurizer, homes, seed, told, ray)
        if from_records is not None:
            result = train_on_records(from_records, asked, output)
        else:
            result = train_on_data(data, asked, output)
    lines = "; ".join(f"{name} {value}" for name, value in result.items())
    say(as_json, result, lines)


@policy_app.command()
def evaluate(
    policy: Annotated[Path, typer.Option("--policy", help="Folder of a policy.")],
    data: Data,
    default: Default = "plain",
    as_json: Json = False,
) -> None:
    """Total time of a policy on held-out measurements, beside every fixed engine and the oracle.

    Example: draftpick evaluate --policy runs/policy --data runs/held-out
    """
    require("train")
    from draftpick.deploy.workflows.demo import show
    from draftpick.deploy.workflows.train import matrix_of
    from draftpick.policy_training.data.dataset import load
    from draftpick.policy_training.evaluation.evaluate import evaluate as judge
    from draftpick.policy_training.train import policy_probabilities
    from draftpick.router.policies import read

    judged = read(policy)
    matrix = matrix_of(load(*data), judged.featurizer, list(judged.arms))[0]
    shares = policy_probabilities(judged, matrix)
    result = judge(matrix, (shares * matrix.time_s).sum(1), shares, default)
    if as_json:
        print(json.dumps(asdict(result)))
    else:
        show(result, out)


@policy_app.command()
def use(
    policy: Annotated[str, typer.Argument(help="Folder of a policy, or `embedded`, `fixed`, `uniform`.")],
    address: Annotated[str, typer.Option(help="The Ray cluster of the fleet; `auto`: the one here.")] = "auto",
    pointer: Annotated[
        Path | None, typer.Option(help="Write it into this file instead, which routers follow (`router.policy`).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Take another policy into service on every replica of a running router, without a restart.

    Examples:

      draftpick use runs/policy
      draftpick use runs/policy --pointer /shared/active
    """
    from draftpick.router.policies import NAMES, read
    from draftpick.router.registry.pointer_file import write_pointer

    name = str(Path(policy).resolve()) if Path(policy).exists() else policy
    if pointer is not None:
        if policy not in NAMES:
            read(Path(name))
        write_pointer(pointer, name)
        say(as_json, {"pointer": str(pointer), "policy": policy}, f"{pointer} names {policy}")
        return
    require("serve")
    from draftpick.deploy.launch.ray_serve import use_policy

    ids = use_policy(name, address)
    say(as_json, {"policies": ids}, f"serving {', '.join(sorted(set(ids)))} on {len(ids)} router replica(s)")


def workers_of(number: int, checkpoints: str | None, beside: Path) -> Any:
    """The workers that fit a network; None for none."""
    from draftpick.policy_training.learners.ray_train import Workers

    return Workers(number, checkpoints or str(beside.resolve())) if number else None


def _renewed(requests: int) -> str:
    return f"; {requests} requests have new contexts" if requests else ""


@policy_app.command()
def encoder(
    output: Annotated[Path, typer.Option("--out", help="Folder of the vectors.")],
    n: Annotated[int, typer.Option("-n", min=100, help="Generated texts to fit and to judge by.")] = 4000,
    dimension: Annotated[int, typer.Option(min=8, help="Length of a vector.")] = 128,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Distil the sentence encoder into a vector per token: contexts in a fraction of a millisecond, without torch.

    Example: draftpick encoder --out runs/static
    """
    require("train")
    from draftpick.engines.models.embedded import encoder_path
    from draftpick.policy_training.distill_encoder import distill_encoder
    from draftpick.policy_training.workloads import generate

    texts = [prompt.text for prompt in generate(n, seed=_ENCODER_SEED + seed)]
    with progress_bar() as bar:
        row = bar.add_task("distilling", total=1.0)
        found = distill_encoder(
            encoder_path(), texts, dimension, output, seed=seed, on_progress=lambda x: bar.update(row, completed=x)
        )
    say(as_json, {"out": str(output), **found}, f"{output}: cosine {found['cosine_held_out']:.3f} on held-out texts")
