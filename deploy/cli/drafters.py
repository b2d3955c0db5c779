"""`draftpick drafters ...`: make drafters for a target, and measure what they are worth."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from draftpick.deploy.console import Config, Json, Port, Prompts, Seed, load_prompts, out, progress_bar, say
from draftpick.deploy.extras import require
from draftpick.deploy.workflows.prepare_models import prepare_models

drafters_app = typer.Typer(no_args_is_help=True, help="Make drafters for a target, and measure what they are worth.")

Target = Annotated[str, typer.Option(help="`embedded`, a path, or a Hugging Face id.")]
Sources = Annotated[
    list[str],
    typer.Option(
        "--prompts",
        help="JSONL with `prompt` (and `kind`) in each line, or `generated`; SOURCE:math@500: 500 of this kind.",
    ),
]
Kinds = Annotated[list[str], typer.Option("--kind", help="Prompts of this kind alone; may be repeated.")]
Start = Annotated[
    Path | None, typer.Option(exists=True, file_okay=False, help="Drafter to go on from, instead of a fresh one.")
]
Temperatures = Annotated[
    list[float], typer.Option("--temperature", help="Of the answers; where repeated, taken in turn.")
]
N = Annotated[int, typer.Option("-n", min=1, help="Most prompts of each kind of each source.")]
MaxTokens = Annotated[int, typer.Option(min=2, help="Longest answer.")]
LearningRate = Annotated[float, typer.Option(min=1e-8, help="Highest learning rate.")]
Epochs = Annotated[int, typer.Option(min=1, help="Most passes over the answers.")]
Hidden = Annotated[int, typer.Option(min=8, help="Hidden size of the drafter, unless --start has one.")]
Layers = Annotated[int, typer.Option(min=1, help="Layers of the drafter, unless --start has some.")]
Minutes = Annotated[float, typer.Option(min=0.01, help="Longest training.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")]


@drafters_app.command()
def table(
    config: Config = "embedded",
    prompts: Prompts = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of prompts, of all kinds in turn.")] = 36,
    repeats: Annotated[int, typer.Option(min=1, help="Times that everything is measured; shows the spread.")] = 3,
    sampled_share: Annotated[float, typer.Option(min=0, max=1, help="Share of prompts sent at temperature 0.7.")] = 0.5,
    max_tokens: MaxTokens = 128,
    output: Annotated[Path, typer.Option("--out", help="Folder of measurements, figures and heat maps.")] = Path(
        "runs/drafters"
    ),
    json_file: JsonFile = None,
    again: Annotated[bool, typer.Option("--again", help="Only report once more what lies in --out.")] = False,
    port: Port = 8000,
    seed: Seed = 1,
) -> None:
    """Every engine on every kind of prompt, one request at a time, in random order: tokens/s against plain, tau and
    acceptance rate. Caches of text over requests are off.

    Starts the fleet, and says what routing could win: the oracles against the best fixed engine, where each oracle
    chooses by the other repeats.

    Example: draftpick drafters table --config embedded -n 36 --repeats 3
    """
    require("serve", "train")
    from draftpick.deploy.config import resolve
    from draftpick.deploy.workflows.drafter_benchmark import read_table, report, run_table
    from draftpick.policy_training.workloads import interleaved

    fleet = resolve(config)
    if again:
        report(read_table(output), fleet.engines, fleet.router.default_engine, output, json_file, out)
        return
    prepare_models(fleet)
    chosen = interleaved(load_prompts(prompts, n, seed, sampled_share, max_tokens))
    run_table(
        fleet, chosen, repeats=repeats, folder=output, json_file=json_file, port=port, seed=seed, console=out,
        bars=progress_bar,
    )  # fmt: skip
    out.print(f"{output}/summary.json, {output}/all.png", highlight=False)


@drafters_app.command()
def replay(
    config: Config = "embedded",
    url: Annotated[
        str | None, typer.Option(help="Router of this fleet, if it runs already; else it is started.")
    ] = None,
    prompts: Prompts = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of prompts.")] = 24,
    max_tokens: MaxTokens = 96,
    json_file: JsonFile = None,
    port: Port = 8000,
    seed: Seed = 2,
) -> None:
    """Replay drafters on the answers of a fleet: tau for every draft length, beside what the engines accepted.

    One answer of the target tells what any drafter would have accepted of it.

    Example: draftpick drafters replay --config embedded
    """
    require("serve", "train")
    from draftpick.deploy.config import resolve, with_router
    from draftpick.deploy.launch.ray_serve import running
    from draftpick.deploy.workflows.replay_check import replay_fleet
    from draftpick.deploy.workflows.results import write
    from draftpick.engines.drafters.replay import LENGTHS

    fleet = resolve(config)
    if not any(engine.can_replay for engine in fleet.engines if engine.drafter is not None):
        raise typer.BadParameter("none of its engines can be replayed", param_hint="--config")
    prepare_models(fleet)
    chosen = load_prompts(prompts, n, seed, 0.0, max_tokens)
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
    output: Annotated[Path, typer.Option("--out", help="The table, a .safetensors file.")],
    texts: Annotated[
        list[Path], typer.Option("--text", exists=True, dir_okay=False, help="A text file; may be repeated.")
    ] = [],
    prompts: Sources = [],
    kinds: Kinds = [],
    target: Target = "embedded",
    n: N = 1000,
    max_tokens: MaxTokens = 192,
    num_bigrams: Annotated[int, typer.Option(min=8, help="Most bigrams to keep; about 75 bytes each.")] = 65_536,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Count the tri-grams of texts or of the target's answers: the starting table of a tri-gram drafter.

    Example: draftpick drafters corpus --prompts generated --out table.safetensors
    """
    require("train", "cpu")
    from draftpick.deploy.workflows.drafter_corpus import Corpus, answers_of, make_table, target_folder

    if not texts and not prompts:
        raise typer.BadParameter("give --text or --prompts")
    sequences = []
    if prompts:
        asked = Corpus(tuple(prompts), tuple(kinds), n, max_tokens, target=target, seed=seed)
        sequences = answers_of(asked).answer_tokens()
    result = make_table(texts, sequences, target_folder(target), output, num_bigrams)
    say(as_json, result, f"{output}: {result['bigrams']} bigrams of {result['tokens']} tokens")


@drafters_app.command()
def distill(
    prompts: Sources,
    output: Annotated[Path, typer.Option("--out", help="Folder of the drafter.")],
    kinds: Kinds = [],
    target: Target = "embedded",
    n: N = 2600,
    max_tokens: MaxTokens = 224,
    temperatures: Temperatures = [0.0],
    loss: Annotated[str, typer.Option(help="ce, kl, tvd, or tvd++.")] = "ce",
    start: Start = None,
    hidden: Hidden = 168,
    layers: Layers = 2,
    learning_rate: LearningRate = 2e-3,
    epochs: Epochs = 6,
    minutes: Minutes = 14.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Distil an independent small drafter from the target's own answers. An interrupted run goes on where it was.

    Example: draftpick drafters distill --prompts gsm8k.jsonl --out drafter --loss kl
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
    options = DistillOptions(size=size, loss=loss, start=start, fit=fit)
    corpus = Corpus(tuple(prompts), tuple(kinds), n, max_tokens, tuple(temperatures), target, seed)
    with progress_bar() as bar:
        result = run_distill(corpus, options, output, _Steps(bar))
    say(as_json, result, f"{output}: {result['parameters'] / 1e6:.1f} M parameters, {_metrics(result)}")


@drafters_app.command()
def eagle(
    prompts: Sources,
    output: Annotated[Path, typer.Option("--out", help="Folder of the head.")],
    kinds: Kinds = [],
    target: Target = "embedded",
    n: N = 3000,
    max_tokens: MaxTokens = 192,
    temperatures: Temperatures = [0.0, 0.7],
    draft_vocab_size: Annotated[
        int, typer.Option(min=16, help="Tokens that the head can draft: the commonest.")
    ] = 4096,
    steps: Annotated[int, typer.Option(min=1, max=8, help="Draft tokens that training unrolls.")] = 3,
    parallel: Annotated[bool, typer.Option(help="Draft all tokens in one pass (`parallel_drafting: true`).")] = False,
    start: Start = None,
    learning_rate: LearningRate = 6e-4,
    epochs: Epochs = 6,
    minutes: Minutes = 20.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train an EAGLE-3 head: one layer on the target's hidden states. An interrupted run goes on where it was.

    Example: draftpick drafters eagle --prompts gsm8k.jsonl --prompts generated:math@500 --out heads/math
    """
    require("train", "cpu")
    from draftpick.deploy.workflows.drafter_corpus import Corpus
    from draftpick.deploy.workflows.drafter_training import run_eagle
    from draftpick.engines.drafters.training.eagle3 import EagleOptions
    from draftpick.engines.drafters.training.trainer import FitOptions

    fit = FitOptions(epochs=epochs, batch_tokens=4096, learning_rate=learning_rate, minutes=minutes, seed=seed)
    corpus = Corpus(tuple(prompts), tuple(kinds), n, max_tokens, tuple(temperatures), target, seed)
    with progress_bar() as bar:
        result = run_eagle(corpus, EagleOptions(draft_vocab_size, steps, parallel, start, fit), output, _Steps(bar))
    survival = ", ".join(f"{result[f'survival/{i}']:.2f}" for i in range(1, steps + 1))
    text = f"{output}: {result['parameters'] / 1e6:.1f} M parameters, survival {survival}"
    say(as_json, result, f"{text}, tau at k {steps} {result['block_efficiency']:.3f}")


@drafters_app.command()
def losses(
    prompts: Sources,
    output: Annotated[Path, typer.Option("--out", help="Folder of the drafters.")],
    kinds: Kinds = [],
    target: Target = "embedded",
    n: N = 1000,
    max_tokens: MaxTokens = 160,
    hidden: Hidden = 168,
    layers: Layers = 2,
    minutes: Minutes = 5.0,
    json_file: JsonFile = None,
    seed: Seed = 0,
) -> None:
    """One drafter trained with cross-entropy, then fine-tuned with each loss for as long again, in one table.

    Example: draftpick drafters losses --prompts gsm8k.jsonl --out runs/losses
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
    corpus = Corpus(tuple(prompts), tuple(kinds), n, max_tokens, target=target, seed=seed)
    with progress_bar() as bar:
        results = compare_losses(corpus, options, output, list(LOSSES), _Steps(bar))
    shown = Table("loss", "agreement", "block efficiency (k 3)", "MBSU")
    for name, r in results.items():
        shown.add_row(name, *(f"{r[key]:.3f}" for key in ("agreement", "block_efficiency", "mbsu")))
    out.print(shown)
    if json_file:
        figures = {f"{key}/{name}": Interval(r[key], r[key], r[key]) for name, r in results.items() for key in r}
        write(json_file, sum(map(len, corpus.parts())), figures)


@drafters_app.command("layer-skip")
def layer_skip(
    prompts: Sources,
    output: Annotated[Path, typer.Option("--out", help="Folder of checkpoint, plot and search.json.")],
    kinds: Kinds = [],
    target: Target = "embedded",
    n: N = 200,
    max_tokens: MaxTokens = 128,
    trials: Annotated[int, typer.Option(min=1, help="Choices of sub-layers to try.")] = 60,
    heal_minutes: Annotated[float, typer.Option(min=0, help="Distil the cut for so long; 0: leave it as it is.")] = 0.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make a drafter out of the target itself: search which attention and MLP sub-layers to leave out.

    Works for any Llama-family target. A small target needs healing: without it a cut of one accepts next to nothing.

    Example: draftpick drafters layer-skip --prompts prompts.jsonl --out runs/self --heal-minutes 20
    """
    require("train", "cpu")
    from draftpick.deploy.workflows.drafter_corpus import Corpus
    from draftpick.deploy.workflows.layer_skip import run_layer_skip

    corpus = Corpus(tuple(prompts), tuple(kinds), n, max_tokens, target=target, seed=seed)
    with progress_bar() as bar:
        result = run_layer_skip(corpus, output, trials=trials, heal_minutes=heal_minutes, progress=_Steps(bar))
    best = result["best"]
    k = best["num_speculative_tokens"]
    text = f"{result['drafter']}: {best['layers']} layers, {best['speedup']:.2f}x expected with k={k}"
    if "healed" in result:
        text += f"; healed: {_metrics(result['healed'])}"
    say(as_json, result, f"{text}\n{output}/search.png")


class _Steps:
    """A line of the progress bar for each thing that is done."""

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
