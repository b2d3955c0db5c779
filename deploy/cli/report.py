"""Evaluation of learners: `draftpick report | learning-curve`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from draftpick.deploy.cli.options import (
    Data,
    DefaultEngine,
    Featurizer,
    Json,
    Learner,
    OutputFile,
    Paraphrased,
    ResultsDir,
    Seeds,
    TrainingDomains,
)
from draftpick.deploy.console import out, progress_bar, say
from draftpick.deploy.extras import require
from draftpick.engines.config import EMBEDDED

report_app = typer.Typer()


@report_app.command()
def report(
    data: Data,
    output: OutputFile = Path("runs/report.html"),
    paraphrased_data: Paraphrased = [],
    under_load: Annotated[
        list[Path], typer.Option("--under-load", help="Dataset measured under load, by `collect --concurrency`.")
    ] = [],
    repeated_answers: Annotated[
        list[Path],
        typer.Option("--repeated-answers", help="Dataset of other prompts with many answers, by `label --answers 12`."),
    ] = [],
    training_domains: TrainingDomains = [],
    paper: Annotated[
        list[Path], typer.Option("--paper", help="Dataset of the seed paper's fleet, by `label --standalone-tokens`.")
    ] = [],
    self_drafting: Annotated[
        str, typer.Option("--self-drafting", help="Comma-separated engines of --paper that draft with the target.")
    ] = "",
    output_dir: ResultsDir = None,
    learners: Annotated[
        str, typer.Option("--learners", help="Comma-separated learners; default: all. Most plots show tau_cost.")
    ] = "",
    default_engine: DefaultEngine = "plain",
    featurizer: Featurizer = None,
    seeds: Seeds = 5,
    as_json: Json = False,
) -> None:
    """Compare all learners on a dataset, as one HTML page: gains, learning curve, choices, calibration, regret.

    Example: draftpick report --data runs/live --data runs/replayed --output runs/report.html
    """
    require("train")
    from draftpick.deploy.workflows.report import EvaluationData, as_rows, fits, read_options, run_report

    datasets = EvaluationData(
        data, paraphrased_data, under_load, repeated_answers, training_domains, paper, _listed(self_drafting)
    )
    with progress_bar() as bar:
        row = bar.add_task("evaluating", total=None)
        options = read_options(
            datasets, _listed(learners), default_engine, featurizer, range(seeds), lambda: bar.advance(row)
        )
        bar.update(row, total=fits(options))
        rows = as_rows(run_report(options, output, output_dir))
    if as_json:
        say(True, {"page": str(output), "ladder": rows}, "")
        return
    table = Table(*rows[0], title="share of the oracle's gain over the best fixed engine")
    for one in rows:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in one.values()))
    out.print(table)
    out.print(str(output), highlight=False)


@report_app.command()
def learning_curve(
    data: Data,
    train_data: Annotated[
        list[Path], typer.Option("--train-data", help="Dataset of other requests, for training only; repeatable.")
    ],
    costs: Annotated[
        str, typer.Option("--costs", help="`tau_cost` policy with the step costs of the engines.")
    ] = EMBEDDED,
    name: Learner = "tau_cost",
    training_domains: TrainingDomains = [],
    output_dir: ResultsDir = None,
    default_engine: DefaultEngine = "plain",
    seeds: Seeds = 5,
    as_json: Json = False,
) -> None:
    """Measure how many training requests suffice: one learner on 50 to 10,000, evaluated on half of --data.

    Needs labels only (`draftpick label`): the costs of a step are those of --costs.

    Example: draftpick learning-curve --data runs/judged --train-data runs/more
    """
    require("train")
    from draftpick.deploy.workflows.featurizers import read_training_domains
    from draftpick.deploy.workflows.learning_curve import costs_of, run_learning_curve
    from draftpick.policy_training.benchmark.experiments import ExperimentSetup
    from draftpick.policy_training.data.dataset import load, smallest_featurizer
    from draftpick.policy_training.data.matrix import matrix
    from draftpick.policy_training.learners import learner

    learner(name)
    known = costs_of(costs)
    featurizer = smallest_featurizer(load(*data), None)
    judged, further = (
        matrix(load(*paths), known.arms, featurizer=featurizer, costs=known) for paths in (data, train_data)
    )
    with progress_bar() as bar:
        row = bar.add_task("training", total=None)
        question = ExperimentSetup(
            judged, known, default_engine, range(seeds), more_training_data=further,
            training_domains=read_training_domains(training_domains, featurizer),
            on_progress=lambda: bar.advance(row),
        )  # fmt: skip
        claim, shares = run_learning_curve(question, name, output_dir)
    if as_json:
        say(True, {str(size): share.value for size, share in shares.items()} | dict(claim.figures), "")
        return
    table = Table("requests", "share of the oracle's gain", "least", "most")
    for size, share in shares.items():
        table.add_row(str(size), f"{share.value:.3f}", f"{share.low:.3f}", f"{share.high:.3f}")
    out.print(table)
    out.print(f"{claim.statement}: {'yes' if claim.holds else 'no'}; {claim.result}", highlight=False)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
