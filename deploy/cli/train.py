"""Datasets and policies: `draftpick collect | label | dataset | train | evaluate | encoder`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from draftpick.deploy.cli.options import (
    DEFAULT_SEED,
    Checkpoints,
    Config,
    Data,
    DefaultEngine,
    Featurizer,
    Json,
    Learner,
    MaxTokens,
    OneSplit,
    OnOverlap,
    OutputDir,
    Port,
    Prompts,
    PromptSources,
    RecordsDir,
    SampledShare,
    Seed,
    TrainingDomains,
    Url,
    Workers,
)
from draftpick.deploy.console import err, fail, load_prompts, out, progress_bar, say
from draftpick.deploy.extras import require

policy_app = typer.Typer()

DraftLengths = Annotated[
    bool,
    typer.Option("--draft-lengths/--no-draft-lengths", help="Also replay other draft lengths; takes twice as long."),
]
StandaloneTokens = Annotated[
    int,
    typer.Option(
        "--standalone-tokens",
        min=0,
        help="Also generate this many tokens with each drafter alone, and score their similarity to the target's.",
    ),
]

CostProfiles = Annotated[
    Path | None,
    typer.Option("--profiles", help="Folder of engine profiles, <engine>.json each: costs of steps without live data."),
]

_PART = 8  # prompts per file of a dataset
_ENCODER_SEED = 20_000  # so that its texts differ from all other generated ones


@policy_app.command()
def collect(
    output_dir: OutputDir,
    url: Url = "http://127.0.0.1:8000",
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="Fleet to start and measure; default: the one at --url.")
    ] = None,
    prompts: Prompts = [],
    split: OneSplit = None,
    overlap: OnOverlap = "fail",
    n: Annotated[int, typer.Option("-n", min=1, help="Number of prompts.")] = 60,
    sampled_share: SampledShare = 0.5,
    max_tokens: MaxTokens = 64,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, help="Concurrent requests; one engine is measured at a time.")
    ] = 1,
    port: Port = 8000,
    seed: Seed = DEFAULT_SEED,
    as_json: Json = False,
) -> None:
    """Send prompts to every engine in random order and measure acceptance, TTFT and TPOT.

    Skips prompts that the dataset already holds, and recomputes their features where the router's have changed.

    Exit codes: 0 done, even if some requests failed; 1 failed, or all requests did; 2 wrong usage or configuration.

    Example: draftpick collect --config embedded --output-dir runs/live -n 60
    """
    require("train", *(["serve"] if config else []))
    from draftpick.deploy.workflows.collect import fleet_at, measure_parts
    from draftpick.deploy.workflows.featurizers import featurizers
    from draftpick.policy_training.data.contexts import refresh_contexts
    from draftpick.policy_training.data.data_card import save_prompt_cards
    from draftpick.policy_training.data.dataset import DatasetParts, load
    from draftpick.policy_training.workloads.card import prompt_cards

    chosen, parts, made = (
        load_prompts(prompts, n, seed, sampled_share, max_tokens, split, overlap),
        DatasetParts(output_dir),
        featurizers(),
    )
    save_prompt_cards(output_dir, prompt_cards(prompts, max_tokens))
    renewed = refresh_contexts(output_dir, chosen, made)
    todo = parts.pending(chosen, max(_PART, 3 * concurrency))
    sent, failed = 0, 0
    if todo:
        with progress_bar() as bar, fleet_at(config, url, port, bar) as base:
            sent, failed = measure_parts(base, todo, parts, made, concurrency, seed, bar)
    arms = load(output_dir).arms
    kept = len(chosen) - sum(map(len, todo))
    result = {"measurements": sent, "failed": failed, "kept": kept, "renewed": renewed, "arms": arms}
    text = f"{sent} measurements ({failed} failed) in {output_dir}; {kept} prompts skipped{_renewed(renewed)}"
    say(as_json, {**result, "out": str(output_dir)}, text)
    if sent and failed == sent:
        raise typer.Exit(1)


@policy_app.command()
def label(
    output_dir: OutputDir,
    config: Config = "embedded",
    prompts: Prompts = [],
    split: OneSplit = None,
    overlap: OnOverlap = "fail",
    n: Annotated[int, typer.Option("-n", min=1, help="Number of prompts.")] = 2000,
    sampled_share: SampledShare = 0.5,
    max_tokens: MaxTokens = 64,
    paraphrase: Annotated[bool, typer.Option("--paraphrase/--no-paraphrase", help="Paraphrase the prompts.")] = False,
    answers: Annotated[
        int, typer.Option("--answers", min=1, help="Answers per sampled prompt; labels are their means.")
    ] = 1,
    draft_lengths: DraftLengths = True,
    standalone_tokens: StandaloneTokens = 0,
    workers: Workers = 0,
    seed: Seed = DEFAULT_SEED,
    as_json: Json = False,
) -> None:
    """Label prompts by replay: compute from one answer of the target what every engine would have accepted.

    Needs no running engine. An interrupted run resumes; features are recomputed where the router's have changed.
    Labels hold no times: train on them together with live measurements (`collect`), of other prompts (--seed).

    Example: draftpick label --output-dir runs/replayed -n 2000 --seed 1
    """
    require("train", *(["serve"] if workers else []))
    from draftpick.deploy.config import resolve
    from draftpick.deploy.workflows.label import label_prompts
    from draftpick.engines.errors import ConfigError
    from draftpick.policy_training.data.data_card import save_prompt_cards
    from draftpick.policy_training.workloads import reword
    from draftpick.policy_training.workloads.card import prompt_cards

    chosen = load_prompts(prompts, n, seed, sampled_share, max_tokens, split, overlap)
    save_prompt_cards(output_dir, prompt_cards(prompts, max_tokens))
    if paraphrase:
        chosen = [reword(prompt, seed) for prompt in chosen]
    try:
        labelled = label_prompts(
            resolve(config),
            chosen,
            output_dir,
            seed=seed,
            answers=answers,
            alone_tokens=standalone_tokens,
            lengths=draft_lengths,
            workers=workers,
        )
    except ConfigError as error:
        fail(f"{config}: {error}", 2)
    note = _renewed(labelled.renewed) + (f"; left out: {', '.join(labelled.left_out)}" if labelled.left_out else "")
    text = f"{labelled.prompts} prompts labelled under {len(labelled.engines)} engines in {output_dir}{note}"
    say(as_json, {**asdict(labelled), "out": str(output_dir)}, text)


@policy_app.command("dataset")
def show_dataset(
    paths: Annotated[list[Path], typer.Argument(help="Datasets from `collect` or `label`.")] = [],
    records: Annotated[list[Path], typer.Option("--records", help="Folder of the router's records; repeatable.")] = [],
    prompts: PromptSources = [],
    overlap: OnOverlap = "fail",
    as_json: Json = False,
) -> None:
    """Print a data card: the requests of datasets and records by engine, task and source, and those left out; of files
    of prompts, their format, checksum, sources, kinds and languages by split, and whether the splits overlap.

    Examples:

      draftpick dataset runs/live runs/replayed
      draftpick dataset --records records
      draftpick dataset --prompts train.jsonl.gz --prompts held-out.jsonl
    """
    require("train")
    from draftpick.policy_training.data.data_card import card, load_prompt_cards
    from draftpick.policy_training.data.dataset import Dataset, load
    from draftpick.policy_training.data.from_records import from_records
    from draftpick.policy_training.workloads.card import describe

    if prompts:
        _show_prompt_files(prompts, overlap, as_json)
        return
    if not paths and not records:
        fail("give a dataset, --records FOLDER or --prompts FILE", 2)
    found = card(sum(map(from_records, records), load(*paths) if paths else Dataset(())))
    found["prompts"] = load_prompt_cards(*paths)
    if as_json:
        print(json.dumps(found))
        return
    out.print(f"{found['requests']} requests, featurizers {', '.join(found['featurizers']) or 'none'}", highlight=False)
    for title, rows in (("arm", found["arms"]), ("kind", found["kinds"])):
        table = Table(title, *next(iter(rows.values())))
        for name, row in rows.items():
            table.add_row(name, *(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
        out.print(table)
    for prompt_file in found["prompts"]:
        out.print(f"prompts of {describe(prompt_file)}", highlight=False, soft_wrap=True, markup=False)
    if found["sources"]:
        sources = ", ".join(f"{name} {count}" for name, count in found["sources"].items())
        out.print(f"sources of prompts: {sources}", highlight=False)
    if found["dropped"]:
        out.print(f"left out: {found['dropped']}", highlight=False)


def _show_prompt_files(sources: list[str], overlap: str, as_json: bool) -> None:
    """Print the cards of files of prompts; fail if their splits overlap, unless that is allowed."""
    from draftpick.policy_training.workloads import PromptSource
    from draftpick.policy_training.workloads.card import prompt_cards
    from draftpick.policy_training.workloads.overlap import describe_overlaps
    from draftpick.policy_training.workloads.sources import file_overlaps

    cards = prompt_cards(sources)
    files = tuple(file for source in sources if (file := PromptSource.parse(source).file()) is not None)
    found = [describe_overlaps(*splits, overlaps) for splits, overlaps in file_overlaps(files).items()]
    if as_json:
        print(json.dumps({"files": cards, "overlaps": found}))
    for card in () if as_json else cards:
        table = Table(card["file"], Column(overflow="fold"))
        for name, value in list(card.items())[1:]:
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            table.add_row(name.replace("_", " "), shown)
        out.print(table)
    if found and overlap == "fail":
        fail("; ".join(found) + "; --overlap allow says so without an error", 1)
    for line in found:
        err.print(line, highlight=False, soft_wrap=True, markup=False)


@policy_app.command()
def train(
    output_dir: OutputDir,
    data: Data = [],
    records: RecordsDir = None,
    learner: Learner = "tau_cost",
    default_engine: DefaultEngine = "plain",
    featurizer: Featurizer = None,
    training_domains: TrainingDomains = [],
    workers: Workers = 0,
    checkpoints: Checkpoints = None,
    profiles: CostProfiles = None,
    seed: Seed = DEFAULT_SEED,
    as_json: Json = False,
) -> None:
    """Train a policy on datasets, live and labelled, or on the router's records.

    --training-domain tells the default learner what a drafter was trained on, so that it predicts well on such requests
    before it has seen any. Networks (mlp_regression, soft_label, exact, reinforce) can train on --workers; an
    interrupted run resumes.

    The learner `calibrated` shrinks predictions far from the training requests and needs proof to leave the default.

    Examples:

      draftpick train --data runs/live --data runs/replayed --output-dir runs/policy
      draftpick train --learner calibrated --data runs/replayed --profiles profiles --output-dir runs/policy
      draftpick train --records records --output-dir runs/policy
    """
    require("train", *(["serve"] if workers else []))
    from draftpick.deploy.workflows.train import TrainOptions, train_on_data, train_on_records
    from draftpick.policy_training.learners import learner as learner_of

    if bool(data) == (records is not None):
        fail("give either --data or --records", 2)
    chosen = learner_of(learner)
    if workers and not chosen.on_workers:
        fail(f"--workers: only networks train on several workers, and {learner} is not one", 2)
    ray = workers_of(workers, checkpoints, output_dir.parent / f".{output_dir.name}-training")
    with progress_bar() as bar:
        row = bar.add_task("training", total=1.0)

        def on_progress(done: int, total: int) -> None:
            bar.update(row, completed=done / total)

        options = TrainOptions(chosen, default_engine, featurizer, training_domains, seed, on_progress, ray, profiles)
        if records is not None:
            result = train_on_records(records, options, output_dir)
        else:
            result = train_on_data(data, options, output_dir)
    lines = "; ".join(f"{name} {value}" for name, value in result.items())
    say(as_json, result, lines)


@policy_app.command()
def evaluate(
    data: Data,
    policy: Annotated[Path | None, typer.Option("--policy", help="Folder of a policy.")] = None,
    learner: Annotated[
        str | None,
        typer.Option("--learner", help="Instead of a policy: train on the sources of the data without each in turn."),
    ] = None,
    default_engine: DefaultEngine = "plain",
    featurizer: Featurizer = None,
    profiles: CostProfiles = None,
    seed: Seed = DEFAULT_SEED,
    as_json: Json = False,
) -> None:
    """Compare the total time of a policy on held-out measurements with every fixed engine and the oracle.

    With --learner, every request is decided by a policy whose training data lacks the request's source.

    Examples:

      draftpick evaluate --policy runs/policy --data runs/held-out
      draftpick evaluate --learner calibrated --data runs/live --data runs/replayed
    """
    require("train")
    from draftpick.deploy.workflows.demo import show
    from draftpick.deploy.workflows.train import evaluate_learner, evaluate_policy
    from draftpick.policy_training.learners import learner as learner_of

    if (policy is None) == (learner is None):
        fail("give either --policy or --learner", 2)
    if learner is not None:
        result = evaluate_learner(data, learner_of(learner), default_engine, featurizer, profiles, seed)
    else:
        assert policy is not None
        result = evaluate_policy(data, policy, default_engine, profiles)
    if as_json:
        print(json.dumps(asdict(result)))
    else:
        show(result, out)


def workers_of(number: int, checkpoints: str | None, beside: Path) -> Any:
    """Ray workers that fit a network; None without workers."""
    from draftpick.policy_training.learners.ray_train import Workers

    return Workers(number, checkpoints or str(beside.resolve())) if number else None


def _renewed(requests: int) -> str:
    return f"; {requests} requests have new contexts" if requests else ""


@policy_app.command()
def encoder(
    output_dir: OutputDir,
    n: Annotated[int, typer.Option("-n", min=100, help="Number of generated texts to fit and validate on.")] = 4000,
    dimension: Annotated[int, typer.Option("--dimension", min=8, help="Length of a vector.")] = 128,
    seed: Seed = DEFAULT_SEED,
    as_json: Json = False,
) -> None:
    """Distil the sentence encoder into one vector per token, which computes contexts in under 1 ms and without torch.

    Example: draftpick encoder --output-dir runs/static
    """
    require("train")
    from draftpick.engines.models.embedded import encoder_path
    from draftpick.policy_training.distill_encoder import distill_encoder
    from draftpick.policy_training.workloads import generate

    texts = [prompt.text for prompt in generate(n, seed=_ENCODER_SEED + seed)]
    with progress_bar() as bar:
        row = bar.add_task("distilling", total=1.0)
        found = distill_encoder(
            encoder_path(), texts, dimension, output_dir, seed=seed, on_progress=lambda x: bar.update(row, completed=x)
        )
    say(
        as_json,
        {"out": str(output_dir), **found},
        f"{output_dir}: cosine {found['cosine_held_out']:.3f} on held-out texts",
    )
