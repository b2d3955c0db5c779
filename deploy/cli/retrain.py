"""The retraining loop: `draftpick retrain | events`."""

import json
import shlex
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draftpick.deploy.cli.former_flags import modernise
from draftpick.deploy.cli.options import (
    DEFAULT_SEED,
    Checkpoints,
    DefaultEngine,
    Json,
    Learner,
    Paraphrased,
    Records,
    RegistryDir,
    Seed,
    TrainingDomains,
    Workers,
)
from draftpick.deploy.cli.train import workers_of
from draftpick.deploy.console import err, fail, out, progress_bar
from draftpick.deploy.extras import require

if TYPE_CHECKING:
    from draftpick.policy_training.retraining.controller import RolloutController

retrain_app = typer.Typer()
_CLUSTER_START_S = 30.0

REJECTED = 3

TrainData = Annotated[list[Path], typer.Option("--data", help="Dataset to train on as well; repeatable.")]
ActiveFeaturizer = Annotated[
    str | None, typer.Option("--featurizer", help="Featurizer of the contexts; default: the active policy's.")
]
Watch = Annotated[
    bool, typer.Option("--watch/--no-watch", help="Keep running: retrain after drift, roll candidates out.")
]
RetrainInterval = Annotated[
    float | None, typer.Option("--interval", min=1, help="With --watch: also retrain at this interval, in seconds.")
]
PollInterval = Annotated[
    float,
    typer.Option("--poll-interval", min=0.1, help="With --watch: read new records at this interval, in seconds."),
]
CanaryShares = Annotated[
    str, typer.Option("--canary-shares", help="Shares of the requests for a candidate, stage by stage.")
]
MinRequests = Annotated[int, typer.Option("--min-requests", min=1, help="Minimum requests of a candidate per stage.")]
MaxRequests = Annotated[
    int, typer.Option("--max-requests", min=1, help="Requests after which an undecided candidate is rejected.")
]
Holdout = Annotated[
    float,
    typer.Option("--holdout", min=0, max=0.5, help="Share of the requests for the previous policy after a promotion."),
]
HoldoutRequests = Annotated[
    int, typer.Option("--holdout-requests", min=1, help="Number of requests after which the holdout ends.")
]
RequireSignificance = Annotated[
    bool,
    typer.Option(
        "--require-significance/--no-require-significance",
        help="Require a significant gain on records before any live traffic.",
    ),
]
MinNewRecords = Annotated[int, typer.Option("--min-new-records", min=1, help="Minimum new records before retraining.")]
Submit = Annotated[str | None, typer.Option("--submit", help="Run as a Ray Job on this cluster: http://HEAD:8265.")]


@retrain_app.command()
def retrain(
    records: Records,
    registry: RegistryDir,
    data: TrainData = [],
    paraphrased_data: Paraphrased = [],
    learner: Learner = "tau_cost",
    default_engine: DefaultEngine = "plain",
    featurizer: ActiveFeaturizer = None,
    training_domains: TrainingDomains = [],
    watch: Watch = False,
    interval: RetrainInterval = None,
    poll_interval: PollInterval = 5.0,
    canary_shares: CanaryShares = "0.01,0.1,0.5",
    min_requests: MinRequests = 50,
    max_requests: MaxRequests = 4000,
    holdout: Holdout = 0.1,
    holdout_requests: HoldoutRequests = 4000,
    require_significance: RequireSignificance = True,
    min_new_records: MinNewRecords = 500,
    workers: Workers = 0,
    checkpoints: Checkpoints = None,
    submit: Submit = None,
    seed: Seed = DEFAULT_SEED,
    as_json: Json = False,
) -> None:
    """Train a candidate policy on the router's records, check it, and put it into the registry.

    The gate also evaluates on unseen requests: --paraphrased-data, and each task of --data (or, without --data, each
    cluster of shadow requests) left out of training in turn. The report lists the checks that were not possible. The
    command can be killed at any time without harm to the registry.

    Exit codes: 0 a candidate or a policy is in service, 1 failed, 2 wrong usage, 3 rejected by the gate.

    Examples:

      draftpick retrain --records records --registry registry
      draftpick retrain --records records --registry registry --watch --interval 3600
    """
    if submit is not None:
        sys.exit(_submitted(submit))
    if paraphrased_data and not data:
        fail("--paraphrased-data needs --data: the original prompts", 2)
    if training_domains and featurizer is None:
        fail("--training-domain needs --featurizer", 2)
    require("train", *(["serve"] if workers else []))
    from draftpick.deploy.workflows.retrain import RetrainOptions
    from draftpick.policy_training.retraining.canary import Limits
    from draftpick.policy_training.retraining.controller import RolloutConfig

    options = RetrainOptions(
        records, registry, data, paraphrased_data, learner, default_engine, featurizer, training_domains, seed,
        require_significance, workers, workers_of(workers, checkpoints, registry / "training"),
    )  # fmt: skip
    shares, limits = _shares(canary_shares), Limits(min_requests=min_requests, max_requests=max_requests)
    rollout = RolloutConfig(shares, limits, min_new_records, interval, holdout, holdout_requests)
    controller = options.controller(rollout, lambda text: _notify(text, as_json))
    if watch:
        _watch(controller, poll_interval)
    else:
        _retrain_once(controller, as_json)


def _retrain_once(controller: "RolloutController", as_json: bool) -> None:
    with progress_bar() as bar:
        row = bar.add_task("retraining", total=None)
        result = controller.train(lambda what: bar.update(row, description=what))
    if as_json:
        print(json.dumps({"action": result.action, "id": result.id, **result.report}))
    if result.action == "refused":
        raise typer.Exit(REJECTED)


def _watch(controller: "RolloutController", poll_interval_s: float) -> None:
    """Step until killed; prints each new failure once, and retries."""
    from draftpick.policy_training.data.dataset import DatasetError
    from draftpick.router.errors import PolicyRejected

    printed = ""
    while True:
        try:
            controller.step()
        except (DatasetError, PolicyRejected, OSError) as error:
            if str(error) != printed:
                err.print(f"[yellow]warning:[/yellow] {error}", highlight=False, soft_wrap=True)
            printed = str(error)
        time.sleep(poll_interval_s)


def _shares(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(share) for share in text.split(","))
    except ValueError:
        fail(f"--canary-shares: {text!r} is not a list of numbers", 2)
    if list(shares) != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] < 1:
        fail(f"--canary-shares: {text!r} must increase, from above 0 to below 1", 2)
    return shares


def _notify(text: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"time": time.time(), "text": text}), file=sys.stderr, flush=True)
    else:
        out.print(text, highlight=False, soft_wrap=True)


def _submitted(address: str) -> int:
    """Run this command as a Ray Job without --submit: prints its output, returns its exit code."""
    require("serve")
    from ray.job_submission import JobStatus, JobSubmissionClient

    arguments = modernise(sys.argv[1:])[0]
    at = next(i for i, one in enumerate(arguments) if one.split("=")[0] == "--submit")
    del arguments[at : at + (1 if "=" in arguments[at] else 2)]
    client = JobSubmissionClient(address)
    job = _job(client, shlex.join([sys.executable, "-m", "draftpick", *arguments]), address)
    err.print(f"job {job} on {address}", highlight=False)
    shown = 0
    while True:
        status, log = client.get_job_status(job), client.get_job_logs(job)
        print(log[shown:], end="", flush=True)
        shown = len(log)
        if status.is_terminal():
            break
        time.sleep(1.0)
    code = client.get_job_info(job).driver_exit_code
    return int(code) if code is not None else int(status != JobStatus.SUCCEEDED)


def _job(client: Any, command: str, address: str) -> str:
    """The job's id. A new cluster accepts jobs only after some seconds."""
    until = time.monotonic() + _CLUSTER_START_S
    while True:
        try:
            return str(client.submit_job(entrypoint=command))
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > until:
                fail(f"--submit {address}: {error}", 1)
            time.sleep(1.0)


@retrain_app.command()
def events(
    records: Records,
    since: Annotated[float, typer.Option("--since", min=0, help="Only the last hours, this many; 0: all.")] = 0.0,
    as_json: Json = False,
) -> None:
    """List the routers' events: drift, changes of engines, and policies activated and rejected, and safe mode.

    Example: draftpick events --records records --since 24
    """
    from draftpick.policy_training.data.record_store import RecordStore

    found = RecordStore(records).events(time.time() - 3600 * since if since else 0.0)
    for event in found:
        if as_json:
            print(json.dumps(asdict(event)))
        else:
            at = datetime.fromtimestamp(event.time, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
            out.print(f"{at}  {event.kind:18} {event.text}", highlight=False, soft_wrap=True)
    if not found and not as_json:
        out.print("nothing happened", highlight=False)
