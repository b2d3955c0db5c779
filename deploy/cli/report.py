"""The command line of judging learners: `draftpick report | curve`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from draftpick.deploy.cli.train import Data, Default, Homes
from draftpick.deploy.console import Json, out, progress_bar, say
from draftpick.deploy.extras import require
from draftpick.engines.config import EMBEDDED

report_app = typer.Typer()


@report_app.command()
def report(
    data: Data,
    output: Annotated[Path, typer.Option("--out", help="The HTML page.")] = Path("runs/report.html"),
    reworded: Annotated[list[Path], typer.Option(help="Dataset of the same prompts, `label --reworded`.")] = [],
    loaded: Annotated[list[Path], typer.Option(help="Live dataset under load, `collect --concurrency`.")] = [],
    often: Annotated[list[Path], typer.Option(help="Other prompts, answered often: `label --answers 12`.")] = [],
    homes: Homes = [],
    paper: Annotated[list[Path], typer.Option(help="Datasets of the seed paper's fleet, `label --alone`.")] = [],
    self_drafting: Annotated[str, typer.Option(help="Comma list: its engines that draft with the target.")] = "",
    results: Annotated[Path | None, typer.Option(help="Also write figures as JSON into this folder.")] = None,
    learners: Annotated[str, typer.Option(help="Comma list; default: all. Most pictures are of the default one.")] = "",
    default: Default = "plain",
    featurizer: Annotated[str | None, typer.Option(help="Whose contexts; default: the lightest in the data.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Random splits.")] = 5,
    as_json: Json = False,
) -> None:
    """Judge every learner on a dataset, as one HTML page with plots: ladder, learning curve, choices, calibration.

    Example: draftpick report --data runs/live --data runs/replayed --out runs/report.html
    """
    require("train")
    from draftpick.deploy.workflows.featurizers import read_training_domains
    from draftpick.deploy.workflows.report import PaperSection, ReportOptions, as_rows, fits, run_report
    from draftpick.deploy.workflows.train import matrix_of
    from draftpick.policy_training.benchmark.experiments import ExperimentSetup
    from draftpick.policy_training.data.dataset import load, smallest_featurizer
    from draftpick.policy_training.data.step_costs import Costs
    from draftpick.policy_training.learners import DEFAULT, LEARNERS, learner

    wanted = _listed(learners) or list(LEARNERS)
    for name in wanted:
        learner(name)
    chosen = DEFAULT if DEFAULT in wanted else wanted[-1]
    found = load(*data)
    name = smallest_featurizer(found, featurizer)
    matrix, costs = matrix_of(found, name, found.arms)

    def replayed(paths: list[Path]) -> Any:
        return matrix_from(paths, name, matrix.arms, costs)

    under_load = Costs.fit(load(*loaded), matrix.arms) if loaded else None
    with progress_bar() as bar:

        def told() -> None:
            bar.advance(row)

        question = ExperimentSetup(
            matrix, costs, default, range(seeds), replayed(reworded), under_load,
            training_domains=read_training_domains(homes, name), on_progress=told,
        )  # fmt: skip
        judged = None
        if paper:
            said = load(*paper)
            judged = PaperSection(
                ExperimentSetup(
                    *matrix_of(said, smallest_featurizer(said, featurizer), said.arms),
                    default,
                    range(seeds),
                    on_progress=told,
                ),
                said,
                _listed(self_drafting),
            )
        brief = ReportOptions(question, wanted, chosen, judged, load(*often) if often else None)
        row = bar.add_task("judging", total=fits(brief))
        climb = run_report(brief, output, results)
    rows = as_rows(climb)
    if as_json:
        say(True, {"page": str(output), "ladder": rows}, "")
        return
    table = Table(*rows[0], title="share of the oracle's gain over the best fixed engine")
    for one in rows:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in one.values()))
    out.print(table)
    out.print(str(output), highlight=False)


@report_app.command()
def curve(
    data: Data,
    more: Annotated[list[Path], typer.Option("--more", help="Other requests, which are trained on and never judged.")],
    costs: Annotated[str, typer.Option(help="Costs of a step: those of this `tau_cost` policy.")] = EMBEDDED,
    name: Annotated[str, typer.Option("--learner", help="Name of the learner; a wrong one lists them.")] = "tau_cost",
    homes: Homes = [],
    results: Annotated[Path | None, typer.Option(help="Also write figures and the plot into this folder.")] = None,
    default: Default = "plain",
    seeds: Annotated[int, typer.Option(min=1, help="Random splits.")] = 5,
    as_json: Json = False,
) -> None:
    """How many examples suffice: one learner on 50 to 10,000 requests, judged on half of --data.

    Needs replayed labels alone (`draftpick label`), since what a step costs is taken from a policy.

    Example: draftpick curve --data runs/judged --more runs/more
    """
    require("train")
    from draftpick.deploy.workflows.featurizers import read_training_domains
    from draftpick.deploy.workflows.learning_curve import costs_of, run_learning_curve
    from draftpick.policy_training.benchmark.experiments import ExperimentSetup
    from draftpick.policy_training.data.dataset import load, smallest_featurizer
    from draftpick.policy_training.learners import learner

    learner(name)
    known = costs_of(costs)
    featurizer = smallest_featurizer(load(*data), None)
    judged, further = (matrix_from(paths, featurizer, known.arms, known) for paths in (data, more))
    with progress_bar() as bar:
        row = bar.add_task("training", total=None)
        question = ExperimentSetup(
            judged, known, default, range(seeds), more_training_data=further,
            training_domains=read_training_domains(homes, featurizer),
            on_progress=lambda: bar.advance(row),
        )  # fmt: skip
        claim, shares = run_learning_curve(question, name, results)
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


def matrix_from(paths: list[Path], featurizer: str, arms: Any, costs: Any) -> Any:
    """The matrix of replayed datasets under costs that are known; None where there are none."""
    from draftpick.policy_training.data.dataset import load
    from draftpick.policy_training.data.matrix import matrix

    return matrix(load(*paths), arms, featurizer=featurizer, costs=costs) if paths else None
