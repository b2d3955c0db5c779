"""`draftpick drafters ...`: train drafters for a target, and measure them."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from draftpick.deploy.cli.options import (
    DEFAULT_SEED,
    Config,
    DraftedTokens,
    Json,
    JsonFile,
    OneSplit,
    OnOverlap,
    OutputDir,
    OutputFile,
    Port,
    Prompts,
    PromptSources,
    SampledShare,
    Seed,
)
from draftpick.deploy.console import describe_files, load_prompts, out, progress_bar, say
from draftpick.deploy.extras import require
from draftpick.deploy.workflows.prepare_models import prepare_models

drafters_app = typer.Typer(no_args_is_help=True, help="Train drafters for a target, and measure them.")

Target = Annotated[str, typer.Option("--target", help="`embedded`, a path, or a Hugging Face id.")]
Tasks = Annotated[list[str], typer.Option("--task", help="Only prompts of this task; repeatable.")]
InitFrom = Annotated[
    Path | None,
    typer.Option("--init-from", exists=True, file_okay=False, help="Drafter to continue from; default: a new one."),
]
Temperatures = Annotated[
    list[float], typer.Option("--temperature", help="Sampling temperature of the answers; repeated: alternates.")
]
N = Annotated[int, typer.Option("-n", min=1, help="Maximum number of prompts per task and source.")]
LearningRate = Annotated[float, typer.Option("--learning-rate", min=1e-8, help="Peak learning rate.")]
Epochs = Annotated[int, typer.Option("--epochs", min=1, help="Maximum number of epochs.")]
Hidden = Annotated[int, typer.Option("--hidden", min=8, help="Hidden size of a new drafter.")]
Layers = Annotated[int, typer.Option("--layers", min=1, help="Number of layers of a new drafter.")]
Minutes = Annotated[float, typer.Option("--minutes", min=0.01, help="Maximum training time, in minutes.")]


@drafters_app.command()
def benchmark(
    config: Config = "embedded",
    prompts: Prompts = [],
    split: OneSplit = None,
    overlap: OnOverlap = "fail",
    n: Annotated[int, typer.Option("-n", min=1, help="Number of prompts, tasks alternating.")] = 36,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Repeats of every measurement.")] = 3,
    sampled_share: SampledShare = 0.5,
    max_tokens: DraftedTokens = 128,
    output_dir: OutputDir = Path("runs/drafters"),
    json_file: JsonFile = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Measure nothing; report what --output-dir holds.")
    ] = False,
    port: Port = 8000,
    seed: Seed = DEFAULT_SEED,
) -> None:
    """Measure every engine on every task: speed-up over no drafter, acceptance length and acceptance rate.

    Starts the fleet and sends one request at a time, in random order; caches shared by requests are off. Also reports
    what an oracle that picks the best engine per request would gain over the best single engine.

    Example: draftpick drafters benchmark --config embedded -n 36 --repeats 3
    """
    require("serve", "train")
    from draftpick.deploy.config import resolve
    from draftpick.deploy.workflows.drafter_benchmark import read_table, report, run_table
    from draftpick.policy_training.workloads import interleaved

    fleet = resolve(config)
    if report_only:
        report(read_table(output_dir), fleet.engines, fleet.router.default_engine, output_dir, json_file, out)
        return
    prepare_models(fleet)
    chosen = interleaved(load_prompts(prompts, n, seed, sampled_share, max_tokens, split, overlap))
    run_table(
        fleet, chosen, repeats=repeats, folder=output_dir, json_file=json_file, port=port, seed=seed, console=out,
        bars=progress_bar,
    )  # fmt: skip
    out.print(f"{output_dir}/summary.json, {output_dir}/all.png", highlight=False)


@drafters_app.command()
def replay(
    config: Config = "embedded",
    url: Annotated[
        str | None, typer.Option("--url", help="Base URL of this fleet's router; default: start the fleet.")
    ] = None,
    prompts: Prompts = [],
    split: OneSplit = None,
    overlap: OnOverlap = "fail",
    n: Annotated[int, typer.Option("-n", min=1, help="Number of prompts.")] = 24,
    max_tokens: DraftedTokens = 96,
    json_file: JsonFile = None,
    port: Port = 8000,
    seed: Seed = DEFAULT_SEED,
) -> None:
    """Replay drafters on the target's answers: acceptance length by draft length, next to the live one.

    Replay computes from one answer of the target what each drafter would have accepted.

    Example: draftpick drafters replay --config embedded
    """
    require("serve", "train")
    from draftpick.deploy.config import resolve, with_router
    from draftpick.deploy.launch.ray_serve import running
    from draftpick.deploy.workflows.replay_check import replay_fleet
    from draftpick.deploy.workflows.results import write
    from draftpick.engines.drafters.replay import LENGTHS

    fleet = resolve(config)
    if not any(engine.can_replay for engine in fleet.engines if engine.has_drafter):
        raise typer.BadParameter("none of its engines can be replayed", param_hint="--config")
    prepare_models(fleet)
    chosen = load_prompts(prompts, n, seed, 0.0, max_tokens, split, overlap)
    started = running(with_router(fleet, policy="uniform", featurizer="none"), port=port)
    with nullcontext(url) if url else started as base, progress_bar() as bar:
        results = replay_fleet(fleet, base, chosen, _Steps(bar))
    shown = Table("engine", "live tau", "replayed", "mean error", *(f"k={k}" for k in LENGTHS))
    for name, result in results.items():
        lengths = [f"{result['by_length'][k]:.2f}" for k in LENGTHS]
        error = f"{result['mean_error'].value:.1%}"
        shown.add_row(name, f"{result['live']:.3f}", f"{result['replayed']:.3f}", error, *lengths)
    out.print(shown)
    if json_file:
        figures = {f"mean_error/{name}": result.pop("mean_error") for name, result in results.items()}
        write(json_file, len(chosen), figures, engines=results)


@drafters_app.command()
def corpus(
    output: OutputFile,
    texts: Annotated[
        list[Path], typer.Option("--text", exists=True, dir_okay=False, help="A text file; repeatable.")
    ] = [],
    prompts: PromptSources = [],
    tasks: Tasks = [],
    split: OneSplit = None,
    overlap: OnOverlap = "fail",
    target: Target = "embedded",
    n: N = 1000,
    max_tokens: DraftedTokens = 192,
    num_bigrams: Annotated[
        int, typer.Option("--num-bigrams", min=8, help="Maximum number of bigrams; about 75 bytes each.")
    ] = 65_536,
    seed: Seed = DEFAULT_SEED,
    as_json: Json = False,
) -> None:
    """Build the initial table of a tri-gram drafter, a .safetensors file, from texts or from the target's answers.

    Example: draftpick drafters corpus --prompts generated --output table.safetensors
    """
    require("train", "cpu")
    from draftpick.deploy.workflows.drafter_corpus import Corpus, answers_of, make_table, target_folder

    if not texts and not prompts:
        raise typer.BadParameter("give --text or --prompts")
    sequences = []
    if prompts:
        describe_files(prompts)
        asked = Corpus(
            tuple(prompts), tuple(tasks), n, max_tokens, target=target, seed=seed, split=split, overlap=overlap
        )
        sequences = answers_of(asked).answer_tokens()
    result = make_table(texts, sequences, target_folder(target), output, num_bigrams)
    say(as_json, result, f"{output}: {result['bigrams']} bigrams of {result['tokens']} tokens")


@drafters_app.command()
def distill(
    prompts: PromptSources,
    output_dir: OutputDir,
    tasks: Tasks = [],
    split: OneSplit = None,
    overlap: OnOverlap = "fail",
    target: Target = "embedded",
    n: N = 2600,
    max_tokens: DraftedTokens = 224,
    temperatures: Temperatures = [0.0],
    loss: Annotated[str, typer.Option("--loss", help="Training loss: ce, kl, tvd, or tvd++.")] = "ce",
    init_from: InitFrom = None,
    hidden: Hidden = 168,
    layers: Layers = 2,
    learning_rate: LearningRate = 2e-3,
    epochs: Epochs = 6,
    minutes: Minutes = 14.0,
    seed: Seed = DEFAULT_SEED,
    as_json: Json = False,
) -> None:
    """Distil a small draft model from the target's answers. An interrupted run resumes.

    Example: draftpick drafters distill --prompts gsm8k.jsonl --output-dir drafter --loss kl
    """
    require("train", "cpu")
    from draftpick.deploy.workflows.drafter_corpus import Corpus
    from draftpick.deploy.workflows.drafter_training import run_distill
    from draftpick.engines.drafters.training.distill import DistillOptions
    from draftpick.engines.drafters.training.losses import LOSSES
    from draftpick.engines.drafters.training.small_llama import Size
    from draftpick.engines.drafters.training.trainer import FitOptions

    if loss not in LOSSES:
        raise typer.BadParameter(f"unknown loss {loss!r} ({', '.join(LOSSES)})", param_hint="--loss")
    size = Size(hidden=hidden, layers=layers, intermediate=4 * hidden)
    fit = FitOptions(epochs=epochs, learning_rate=learning_rate, minutes=minutes, seed=seed)
    options = DistillOptions(size=size, loss=loss, start=init_from, fit=fit)
    describe_files(prompts)
    corpus = Corpus(tuple(prompts), tuple(tasks), n, max_tokens, tuple(temperatures), target, seed, split, overlap)
    with progress_bar() as bar:
        result = run_distill(corpus, options, output_dir, _Steps(bar))
    say(as_json, result, f"{output_dir}: {result['parameters'] / 1e6:.1f} M parameters, {_metrics(result)}")


@drafters_app.command()
def eagle(
    prompts: PromptSources,
    output_dir: OutputDir,
    tasks: Tasks = [],
    split: OneSplit = None,
    overlap: OnOverlap = "fail",
    target: Target = "embedded",
    n: N = 3000,
    max_tokens: DraftedTokens = 192,
    temperatures: Temperatures = [0.0, 0.7],
    draft_vocab_size: Annotated[
        int, typer.Option("--draft-vocab-size", min=16, help="Size of the draft vocabulary: the most frequent tokens.")
    ] = 4096,
    unroll_steps: Annotated[
        int, typer.Option("--unroll-steps", min=1, max=8, help="Draft steps to unroll in training.")
    ] = 3,
    parallel: Annotated[
        bool,
        typer.Option("--parallel/--no-parallel", help="Draft all tokens in one pass (`parallel_drafting: true`)."),
    ] = False,
    init_from: InitFrom = None,
    learning_rate: LearningRate = 6e-4,
    epochs: Epochs = 6,
    minutes: Minutes = 20.0,
    seed: Seed = DEFAULT_SEED,
    as_json: Json = False,
) -> None:
    """Train an EAGLE-3 head: one layer on the target's hidden states. An interrupted run resumes.

    Example: draftpick drafters eagle --prompts gsm8k.jsonl --prompts generated:math@500 --output-dir heads/math
    """
    require("train", "cpu")
    from draftpick.deploy.workflows.drafter_corpus import Corpus
    from draftpick.deploy.workflows.drafter_training import run_eagle
    from draftpick.engines.drafters.training.eagle3 import EagleOptions
    from draftpick.engines.drafters.training.trainer import FitOptions

    fit = FitOptions(epochs=epochs, batch_tokens=4096, learning_rate=learning_rate, minutes=minutes, seed=seed)
    describe_files(prompts)
    corpus = Corpus(tuple(prompts), tuple(tasks), n, max_tokens, tuple(temperatures), target, seed, split, overlap)
    with progress_bar() as bar:
        options = EagleOptions(draft_vocab_size, unroll_steps, parallel, init_from, fit)
        result = run_eagle(corpus, options, output_dir, _Steps(bar))
    survival = ", ".join(f"{result[f'survival/{i}']:.2f}" for i in range(1, unroll_steps + 1))
    text = f"{output_dir}: {result['parameters'] / 1e6:.1f} M parameters, survival {survival}"
    say(as_json, result, f"{text}, tau at k {unroll_steps} {result['block_efficiency']:.3f}")


@drafters_app.command()
def losses(
    prompts: PromptSources,
    output_dir: OutputDir,
    tasks: Tasks = [],
    split: OneSplit = None,
    overlap: OnOverlap = "fail",
    target: Target = "embedded",
    n: N = 1000,
    max_tokens: DraftedTokens = 160,
    hidden: Hidden = 168,
    layers: Layers = 2,
    minutes: Minutes = 5.0,
    json_file: JsonFile = None,
    seed: Seed = DEFAULT_SEED,
) -> None:
    """Compare training losses: train a drafter with cross-entropy, then fine-tune it equally long with each loss.

    Example: draftpick drafters losses --prompts gsm8k.jsonl --output-dir runs/losses
    """
    require("train", "cpu")
    from draftpick.deploy.workflows.drafter_corpus import Corpus
    from draftpick.deploy.workflows.drafter_training import compare_losses
    from draftpick.deploy.workflows.results import write
    from draftpick.engines.drafters.training.distill import DistillOptions
    from draftpick.engines.drafters.training.losses import LOSSES
    from draftpick.engines.drafters.training.small_llama import Size
    from draftpick.engines.drafters.training.trainer import FitOptions
    from draftpick.policy_training.evaluation.evaluate import Interval

    size = Size(hidden=hidden, layers=layers, intermediate=4 * hidden)
    options = DistillOptions(size=size, fit=FitOptions(epochs=1000, minutes=minutes, seed=seed))
    describe_files(prompts)
    corpus = Corpus(tuple(prompts), tuple(tasks), n, max_tokens, target=target, seed=seed, split=split, overlap=overlap)
    with progress_bar() as bar:
        results = compare_losses(corpus, options, output_dir, list(LOSSES), _Steps(bar))
    shown = Table("loss", "agreement", "block efficiency (k 3)", "MBSU")
    for name, r in results.items():
        shown.add_row(name, *(f"{r[key]:.3f}" for key in ("agreement", "block_efficiency", "mbsu")))
    out.print(shown)
    if json_file:
        figures = {f"{key}/{name}": Interval(r[key], r[key], r[key]) for name, r in results.items() for key in r}
        write(json_file, sum(map(len, corpus.parts())), figures)


@drafters_app.command("layer-skip")
def layer_skip(
    prompts: PromptSources,
    output_dir: OutputDir,
    tasks: Tasks = [],
    split: OneSplit = None,
    overlap: OnOverlap = "fail",
    target: Target = "embedded",
    n: N = 200,
    max_tokens: DraftedTokens = 128,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Number of layer sets to try.")] = 60,
    distill_minutes: Annotated[
        float, typer.Option("--distill-minutes", min=0, help="Minutes of distillation after the search; 0: none.")
    ] = 0.0,
    seed: Seed = DEFAULT_SEED,
    as_json: Json = False,
) -> None:
    """Make a self-speculative drafter: search which attention and MLP sub-layers of the target to skip.

    Works for any Llama-family target. A small target needs --distill-minutes: without it hardly a draft is accepted.

    Example: draftpick drafters layer-skip --prompts prompts.jsonl --output-dir runs/self --distill-minutes 20
    """
    require("train", "cpu")
    from draftpick.deploy.workflows.drafter_corpus import Corpus
    from draftpick.deploy.workflows.layer_skip import run_layer_skip

    describe_files(prompts)
    corpus = Corpus(tuple(prompts), tuple(tasks), n, max_tokens, target=target, seed=seed, split=split, overlap=overlap)
    with progress_bar() as bar:
        result = run_layer_skip(corpus, output_dir, trials=trials, heal_minutes=distill_minutes, progress=_Steps(bar))
    best = result["best"]
    k = best["num_speculative_tokens"]
    text = f"{result['drafter']}: {best['layers']} layers, {best['speedup']:.2f}x expected with k={k}"
    if "healed" in result:
        text += f"; healed: {_metrics(result['healed'])}"
    say(as_json, result, f"{text}\n{output_dir}/search.png")


class _Steps:
    """One progress bar per task."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._rows: dict[str, Any] = {}

    def __call__(self, what: str, share: float, how: str) -> None:
        if what not in self._rows:
            self._rows[what] = self._bar.add_task(what, total=100)
        self._bar.update(self._rows[what], completed=100 * share, description=f"{what}: {how}" if how else what)


def _metrics(result: dict[str, Any]) -> str:
    k = result["options"]["num_speculative_tokens"]
    return (
        f"agreement {result['agreement']:.3f}, tau at k {k} {result['block_efficiency']:.3f}, MBSU {result['mbsu']:.3f}"
    )
