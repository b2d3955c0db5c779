"""The command line of the loop: `draftpick retrain | events`."""

import json
import shlex
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from draftpick.deploy.cli.train import Checkpoints, Default, Homes, workers_of
from draftpick.deploy.console import Json, Seed, err, fail, out, progress_bar
from draftpick.deploy.extras import require

retrain_app = typer.Typer()
_CLUSTER_BEGINS_S = 30.0

REFUSED = 3
Records = Annotated[
    str, typer.Option("--records", help="Folder of the router's records, or a URL of any fsspec store.")
]
RegistryDir = Annotated[Path, typer.Option("--registry", envvar="DRAFTPICK_REGISTRY", help="Folder of the registry.")]


@retrain_app.command()
def retrain(
    records: Records,
    registry: RegistryDir,
    data: Annotated[list[Path], typer.Option("--data", help="Datasets to learn from, too; may be repeated.")] = [],
    reworded: Annotated[
        list[Path], typer.Option("--reworded", help="Requests of --data in other words, to judge by; may be repeated.")
    ] = [],
    learner: Annotated[str, typer.Option(help="Name of the learner; a wrong one lists them.")] = "tau_cost",
    default: Default = "plain",
    featurizer: Annotated[str | None, typer.Option(help="Whose contexts; default: the active policy's.")] = None,
    homes: Homes = [],
    watch: Annotated[bool, typer.Option(help="Go on: retrain after drift, take candidates to all requests.")] = False,
    every: Annotated[float | None, typer.Option(min=1, help="With --watch: train so often, in seconds.")] = None,
    poll: Annotated[float, typer.Option(min=0.1, help="With --watch: look so often, in seconds.")] = 5.0,
    stages: Annotated[
        str, typer.Option(help="Shares of the requests that a candidate decides, in turn.")
    ] = "0.01,0.1,0.5",
    min_requests: Annotated[int, typer.Option(min=1, help="Requests of a candidate's own in each stage.")] = 50,
    most_requests: Annotated[int, typer.Option(min=1, help="Undecided after so many of its own: refused.")] = 4000,
    holdout: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share that the policy before keeps after a promotion; 0: none.")
    ] = 0.1,
    watched: Annotated[int, typer.Option(min=1, help="Requests that it keeps it for.")] = 4000,
    prove: Annotated[bool, typer.Option(help="Ask for a proven gain by records, before any live traffic.")] = True,
    fewest_new: Annotated[int, typer.Option(min=1, help="New records before another training.")] = 500,
    workers: Annotated[
        int,
        typer.Option(min=0, help="Ray workers that read segments, and fit a network together; 0: in this process."),
    ] = 0,
    checkpoints: Checkpoints = None,
    submit: Annotated[str | None, typer.Option(help="Run it as a Ray Job there: http://HEAD:8265.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make a candidate of the router's records, gate it, and put it into the registry.

    Its gate also asks what the same learner would do with requests that it has not seen: of --data in other words
    (--reworded, made by `label --reworded`), and each kind of --data in turn, or, without, each kind of record that
    shadows know the times of. The report says which of these checks were not made, and why.

    May be killed at any time: the registry always holds one whole policy.

    Exit codes: 0 a candidate is on its way or a policy serves, 1 failed, 2 wrong usage, 3 refused by its gate.

    Examples:

      draftpick retrain --records records --registry registry
      draftpick retrain --records records --registry registry --watch --every 3600
    """
    if submit is not None:
        require("serve")
        sys.exit(_submitted(submit))
    require("train", *(["serve"] if workers else []))
    from draftpick.policy_training.data.dataset import load
    from draftpick.policy_training.data.record_store import RecordStore
    from draftpick.policy_training.learners import learner as learner_of
    from draftpick.policy_training.retraining.canary import Limits
    from draftpick.policy_training.retraining.controller import RolloutConfig, RolloutController
    from draftpick.policy_training.retraining.pipeline import RetrainingPlan
    from draftpick.router.registry.registry import Registry

    if reworded and not data:
        fail("--reworded needs --data: the same requests in their own words", 2)
    plan = RetrainingPlan(
        learner_of(learner),
        default,
        featurizer,
        base=load(*data) if data else None,
        reworded=load(*reworded) if reworded else None,
        training_domains=_homes(homes, featurizer),
        seed=seed,
        require_significance=prove,
        workers=workers_of(workers, checkpoints, registry / "training"),
    )
    limits = Limits(min_requests=min_requests, max_requests=most_requests)
    rules = RolloutConfig(_shares(stages), limits, fewest_new, every, holdout, watched)
    store = RecordStore(records, workers)
    keeper = RolloutController(store, Registry(registry), plan, rules, lambda text: _notify(text, as_json))
    if watch:
        _keep(keeper, poll)
        return
    with progress_bar() as bar:
        row = bar.add_task("retraining", total=None)
        result = keeper.train(lambda what: bar.update(row, description=what))
    if as_json:
        print(json.dumps({"action": result.action, "id": result.id, **result.report}))
    if result.action == "refused":
        raise typer.Exit(REFUSED)


def _keep(keeper: Any, poll_s: float) -> None:
    """Step for ever; what fails is told of and tried again."""
    from draftpick.policy_training.data.dataset import DatasetError
    from draftpick.router.errors import PolicyRejected

    said = ""
    while True:
        try:
            keeper.step()
        except (DatasetError, PolicyRejected, OSError) as error:
            if str(error) != said:
                err.print(f"[yellow]warning:[/yellow] {error}", highlight=False, soft_wrap=True)
            said = str(error)
        time.sleep(poll_s)


def _shares(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(share) for share in text.split(","))
    except ValueError:
        fail(f"--stages: {text!r} is no list of numbers", 2)
    if list(shares) != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] < 1:
        fail(f"--stages: {text!r} must rise, from above 0 to below 1", 2)
    return shares


def _homes(homes: list[str], featurizer: str | None) -> Any:
    from draftpick.deploy.workflows.featurizers import read_training_domains

    if homes and featurizer is None:
        fail("--home needs --featurizer: whose contexts of these texts", 2)
    return read_training_domains(homes, featurizer or "")


def _notify(text: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"time": time.time(), "text": text}), file=sys.stderr, flush=True)
    else:
        out.print(text, highlight=False, soft_wrap=True)


def _submitted(address: str) -> int:
    """Run this very command as a Ray Job, without --submit; its output here, its exit code back."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    arguments = list(sys.argv[1:])
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
    """Its number. A cluster that has just begun takes jobs some seconds later."""
    until = time.monotonic() + _CLUSTER_BEGINS_S
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
    since: Annotated[float, typer.Option(min=0, help="Only those of the last so many hours; 0: all.")] = 0.0,
    as_json: Json = False,
) -> None:
    """What routers noticed and did: engines and requests that changed, policies taken, refused and put aside.

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
