"""`draftpick report`: evaluation of all learners, as a self-contained HTML page and as figures."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from draftpick.deploy.plots import report as plots
from draftpick.deploy.workflows.featurizers import read_training_domains
from draftpick.deploy.workflows.learning_curve import read_learning_curve
from draftpick.deploy.workflows.results import command_line, machine, versions, write
from draftpick.deploy.workflows.train import matrix_of
from draftpick.policy_training.benchmark import experiments
from draftpick.policy_training.benchmark.experiments import ExperimentSetup
from draftpick.policy_training.benchmark.paper_claims import Findings, check, steps
from draftpick.policy_training.data.dataset import Dataset, load, smallest_featurizer
from draftpick.policy_training.data.matrix import Matrix, matrix
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.evaluation.evaluate import Evaluation, Interval
from draftpick.policy_training.learners import DEFAULT, LEARNERS
from draftpick.policy_training.learners import learner as learner_of

_SPLITS = {
    "iid": "requests like those of training",
    "source": "sources unseen in training",
    "domain": "a task unseen in training",
    "rewording": "the same tasks in other words",
    "own_words": "the same, with choices made on the original words",
    "load": "costs of a step under load",
}
BenchmarkResult = dict[str, dict[str, dict[str, Interval]]]


@dataclass(frozen=True, slots=True)
class Section:
    """One plot with its caption."""

    title: str
    text: str
    picture: str


@dataclass(frozen=True, slots=True)
class PaperSection:
    """The fleet for the seed paper's claims: requests, dataset, and self-drafting arms."""

    question: ExperimentSetup
    data: Dataset
    self_drafting: Sequence[str]


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """Options of a report. `name`: the learner of all plots except the ladder; `repeated_answers`: see
    `answer_predictability`."""

    question: ExperimentSetup
    learners: Sequence[str]
    name: str
    paper: PaperSection | None = None
    repeated_answers: Dataset | None = None


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """Datasets to evaluate learners on; all but `data` may be empty. `self_drafting`: engines of `paper`."""

    data: Sequence[Path]
    paraphrased: Sequence[Path]
    under_load: Sequence[Path]
    repeated_answers: Sequence[Path]
    training_domains: Sequence[str]
    paper: Sequence[Path]
    self_drafting: Sequence[str]


def read_options(
    datasets: EvaluationData,
    learners: Sequence[str],
    default_engine: str,
    featurizer: str | None,
    seeds: range,
    on_progress: Callable[[], None],
) -> ReportOptions:
    """Read the datasets. `learners`: empty for all. Raises `DatasetError` for an unknown learner or a bad dataset."""
    wanted = list(learners) or list(LEARNERS)
    for learner in wanted:
        learner_of(learner)
    found = load(*datasets.data)
    name = smallest_featurizer(found, featurizer)
    data, costs = matrix_of(found, name, found.arms)
    question = ExperimentSetup(
        data,
        costs,
        default_engine,
        seeds,
        matrix_from(datasets.paraphrased, name, data.arms, costs),
        Costs.fit(load(*datasets.under_load), data.arms) if datasets.under_load else None,
        training_domains=read_training_domains(datasets.training_domains, name),
        on_progress=on_progress,
    )
    paper = None
    if datasets.paper:
        said = load(*datasets.paper)
        setup = ExperimentSetup(
            *matrix_of(said, smallest_featurizer(said, featurizer), said.arms),
            default_engine,
            seeds,
            on_progress=on_progress,
        )
        paper = PaperSection(setup, said, datasets.self_drafting)
    repeated = load(*datasets.repeated_answers) if datasets.repeated_answers else None
    return ReportOptions(question, wanted, DEFAULT if DEFAULT in wanted else wanted[-1], paper, repeated)


def matrix_from(paths: Sequence[Path], featurizer: str, arms: Sequence[str], costs: Costs) -> Matrix | None:
    """The matrix of labelled datasets under known costs; None without a dataset."""
    return matrix(load(*paths), arms, featurizer=featurizer, costs=costs) if paths else None


def run_report(options: ReportOptions, out: Path, results: Path | None) -> BenchmarkResult:
    """Write the page, and `ladder.json` and `paper.json` into the folder `results`.

    If `results` contains a curve of `draftpick learning-curve`, the claim on few examples uses that longer curve.
    """
    question, name, paper = options.question, options.name, options.paper
    climb = experiments.run_benchmark(question, options.learners)
    curve = experiments.learning_curve(question, name, experiments.SIZES)
    foresight = (
        experiments.answer_predictability(question, options.repeated_answers, name) if options.repeated_answers else {}
    )
    judged = experiments.evaluation(question, name)
    sections, findings = _sections(question, name, climb, curve, judged.shares), None
    if paper is not None:
        findings = check(paper.question, paper.data, name, read_learning_curve(results) or curve, paper.self_drafting)
        sections.append(
            Section(
                "Alpha",
                "The seed paper's policy, whose reward is alpha * alignment + (1 - alpha) * cost: its choices, and the "
                "resulting time.",
                plots.alphas(findings.alphas),
            )
        )
    page = Environment(
        loader=PackageLoader("draftpick.deploy"), autoescape=True, undefined=StrictUndefined
    ).get_template("report.html")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        page.render(
            name=name, sections=sections, splits={k: v for k, v in _SPLITS.items() if k in climb[name]}, climb=climb,
            requests=len(question.data), kinds=sorted(set(question.data.kinds)), arms=question.data.arms,
            claims=findings.claims if findings else [], paper_arms=paper.question.data.arms if paper else [],
            dropped=question.data.dropped, foresight=foresight, judged=judged, command=command_line(),
            machine=machine(), versions=versions(),
        )
    )  # fmt: skip
    if results is not None:
        figures = ladder_figures(climb, name) | {f"learning_curve/{n}": share for n, share in curve.items()} | foresight
        figures |= slice_figures(judged)
        write(results / "ladder.json", len(question.data), figures, seeds=list(question.seeds), learner=name)
        if paper is not None and findings is not None:
            words = {claim.name: {"said": claim.statement, "found": claim.result} for claim in findings.claims}
            write(results / "paper.json", len(paper.question.data), paper_figures(findings), claims=words)
    return climb


def _sections(
    question: ExperimentSetup,
    name: str,
    results: BenchmarkResult,
    curve: dict[int, Interval],
    shares: dict[str, dict[str, float]],
) -> list[Section]:
    """The plots of the findings and of the default learner."""
    important = experiments.importance(question, name)
    tau = experiments.calibration(question, name)
    regret = experiments.regret(question, name)
    sections = [
        Section(
            "The ladder",
            "Share of the per-request oracle's gain over the best fixed engine; mean and range over "
            f"{len(question.seeds)} seeds.",
            plots.ladder(
                {learner: results[learner] for learner in results}, [s for s in _SPLITS if s in results[name]]
            ),
        ),
        Section("Learning curve", f"The same share of {name}, by number of training requests.", plots.curve(curve)),
        Section(
            "Choices", f"Shares of the engines in the choices of {name}, on held-out requests.", plots.shares(shares)
        ),
        Section("Regret", "Cumulative seconds lost to the oracle, by engine and policy.", plots.regret(regret)),
        Section(
            "Feature importance",
            "Share of the gain lost when a feature is shuffled.",
            plots.importance(important),
        ),
    ]
    if tau is not None:
        text = "Predicted and measured acceptance length of held-out requests."
        sections.append(Section("Calibration", text, plots.calibration(*tau)))
    return sections


def slice_figures(judged: Evaluation) -> dict[str, Interval]:
    """Figures of the policy by task, worst first, and of its worst tasks."""
    slices = judged.slices
    figures = {f"task/{task}/vs_best_fixed": one.policy_vs_best_fixed for task, one in slices.items()}
    figures |= {f"task/{task}/vs_plain": one.policy_vs_plain for task, one in slices.items()}
    for name in ("vs_best_fixed", "vs_plain"):
        figures[f"worst_task_{name}"] = min(
            (figures[f"task/{task}/{name}"] for task in slices), key=lambda one: one.value
        )
    return figures


def paper_figures(findings: Findings) -> dict[str, Interval]:
    """For every claim: whether it holds (0 or 1), and its figures; and the sweep over alpha."""
    figures = {k: v for claim in findings.claims for k, v in claim.as_figures().items()}
    for one in findings.alphas:
        figures |= {f"alpha/{one.alpha:g}/{k}": v for k, v in asdict(one).items() if k != "alpha"}
    return {name: Interval(value, value, value) for name, value in figures.items()}


def ladder_figures(results: BenchmarkResult, name: str) -> dict[str, Interval]:
    """Figures by name: of every learner and split, and again those of the default learner that have targets."""
    figures = {
        f"{learner}/{split}/{figure}": value
        for learner, splits in results.items()
        for split, scores in splits.items()
        for figure, value in scores.items()
    }
    own = results[name]
    figures["iid_share_of_oracle"] = own["iid"]["share_of_oracle"]
    figures["lodo_share_of_oracle"] = own["domain"]["share_of_oracle"]
    figures["worst_domain_vs_plain"] = own["iid"]["worst_domain_vs_plain"]
    if "rewording" in own:
        # On the same requests and answers: other words also change the answers, and thus the possible gain.
        figures["rewording_share_of_own_gain"] = _share(own["rewording"], own["own_words"])
        figures["rewording_share_of_iid_gain"] = _share(own["rewording"], own["iid"])
    return figures


def _share(scores: dict[str, Interval], of: dict[str, Interval]) -> Interval:
    """Ratio of two gains over the best fixed engine, each the mean over the seeds."""
    gain, other = scores["vs_best_fixed"].value - 1, of["vs_best_fixed"].value - 1
    return Interval(*(3 * (gain / other if other > 0 else 0.0,)))


def fits(options: ReportOptions) -> int:
    """Number of progress reports of `run_report`, for a progress bar."""
    question, paper = options.question, options.paper
    seeds, sizes = len(question.seeds), sum(size <= len(question.data) // 2 for size in experiments.SIZES)
    fitted = seeds * (len(options.learners) + sizes + (options.repeated_answers is not None)) + 4
    return fitted + (steps(paper.question, paper.self_drafting) if paper else 0)


def as_rows(results: BenchmarkResult) -> list[dict[str, Any]]:
    """The ladder as rows: one per learner, with shares of the oracle's gain by split."""
    return [
        {"learner": learner, **{s: v["share_of_oracle"].value for s, v in splits.items()}}
        for learner, splits in results.items()
    ]
