"""`draftpick learning-curve`: sample efficiency of a learner, compared with the seed paper's claim."""

import json
from pathlib import Path

from draftpick.deploy.plots import report as plots
from draftpick.deploy.workflows.results import merge_into, write
from draftpick.engines.config import EMBEDDED
from draftpick.policy_training.benchmark.experiments import SIZES, ExperimentSetup, learning_curve
from draftpick.policy_training.benchmark.paper_claims import Claim, few_examples
from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.router.policies import SHIPPED

FILE = "learning-curve.json"
_PAPER = "paper.json"


def costs_of(policy: str) -> Costs:
    """Costs of a step in the manifest of a policy: a folder, or `embedded`. Raises `DatasetError` without costs."""
    manifest = (SHIPPED if policy == EMBEDDED else Path(policy)) / "manifest.json"
    try:
        provenance = json.loads(manifest.read_text())["provenance"]
        return Costs.from_json(provenance["costs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{manifest} has no costs of a step: name a policy made by `draftpick train`") from error


def run_learning_curve(question: ExperimentSetup, name: str, results: Path | None) -> tuple[Claim, dict[int, Interval]]:
    """Compute the claim and the curve; write both into `results`, where `paper.json` gets the new verdict as well."""
    shares = learning_curve(question, name, SIZES)
    claim = few_examples(shares)
    if results is not None:
        figures = {f"learning_curve/{size}": share for size, share in shares.items()} | _figures(claim)
        rows = len(question.data) + (0 if question.more_training_data is None else len(question.more_training_data))
        write(results / FILE, rows, figures, learner=name, claim={"said": claim.statement, "found": claim.result})
        (results / FILE).with_suffix(".svg").write_text(plots.curve(shares))
        if (results / _PAPER).is_file():
            merge_into(
                results / _PAPER, _figures(claim), claims={claim.name: {"said": claim.statement, "found": claim.result}}
            )
    return claim, shares


def _figures(claim: Claim) -> dict[str, Interval]:
    return {name: Interval(value, value, value) for name, value in claim.as_figures().items()}


def read_learning_curve(results: Path | None) -> dict[int, Interval]:
    """Read the curve of a folder; empty without one."""
    if results is None or not (results / FILE).is_file():
        return {}
    figures = json.loads((results / FILE).read_text())["figures"]
    points = {k.removeprefix("learning_curve/"): v for k, v in figures.items() if k.startswith("learning_curve/")}
    return {int(size): Interval(v["value"], v["low"], v["high"]) for size, v in points.items()}
