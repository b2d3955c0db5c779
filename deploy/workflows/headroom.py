"""`draftpick headroom`: a verdict with reasons, from records, datasets or prompts."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from draftpick.deploy.config import resolve
from draftpick.deploy.console import err, load_prompts
from draftpick.deploy.workflows.label import label_prompts
from draftpick.deploy.workflows.train import matrix_of
from draftpick.engines.config import EMBEDDED
from draftpick.engines.errors import ConfigError
from draftpick.engines.profile.profile import Profile
from draftpick.policy_training.data.dataset import Dataset, DatasetError, load, smallest_featurizer
from draftpick.policy_training.data.matrix import Matrix, matrix
from draftpick.policy_training.data.record_store import RecordStore
from draftpick.policy_training.data.step_costs import Costs
from draftpick.policy_training.headroom.crossover import Bucket, buckets_by_load
from draftpick.policy_training.headroom.estimate import (
    FOLDS,
    MIN_REQUESTS,
    SPLITS,
    CrossFittedChoice,
    Headroom,
    Ids,
    Mask,
    ProgressCallback,
    context_groups,
    cross_fit,
    evaluate_choice,
)
from draftpick.policy_training.headroom.from_logged import evaluate_logged, is_rejected
from draftpick.policy_training.headroom.from_records import Traffic, drawn_costs
from draftpick.policy_training.headroom.simulated import Loaded, read_profiles, under_load, unloaded_costs
from draftpick.policy_training.headroom.slices import find_slices
from draftpick.policy_training.headroom.verdict import Evidence, crossovers, describe, reasons_against
from draftpick.policy_training.learners import learner as learner_of
from draftpick.policy_training.workloads.sources import OnOverlap
from draftpick.policy_training.workloads.splits import Split
from draftpick.router.config.router_config import DraftpickConfig

FITS = FOLDS * SPLITS
"""Number of fitted policies; twice as many if single answers are rejected."""
_ENOUGH_PAIRED = 100
_COSTS_DRAWN = 40
_MAX_RECORDS = 20_000


@dataclass(frozen=True, slots=True)
class HeadroomOptions:
    """Options of the command. `config`: a fleet; None: not given."""

    config: str | None
    records: str | None
    data: list[Path]
    prompts: Sequence[str]
    profiles: Path | None
    rate: float | None
    min_gain: float
    learner: str
    n: int
    max_tokens: int
    sampled_share: float
    output_dir: Path
    seed: int
    split: Split | None = None
    overlap: OnOverlap = "fail"

    def fleet(self) -> DraftpickConfig | None:
        """The given configuration, if any."""
        return resolve(self.config) if self.config is not None else None


@dataclass(frozen=True, slots=True)
class HeadroomResult:
    """The evidence; `source`: its description; `excluded`: numbers of excluded requests, by reason."""

    evidence: Evidence
    source: str
    excluded: Mapping[str, int]


def evaluate_headroom(options: HeadroomOptions, on_progress: ProgressCallback) -> HeadroomResult:
    """Evaluate the given requests. `on_progress`: called after each of about `FITS` fits.

    Raises `DatasetError` and `ConfigError`.
    """
    learner_of(options.learner)
    fleet = options.fleet()
    records = options.records
    if not (options.data or options.prompts or records) and fleet is not None and fleet.router.records.dir is not None:
        records = str(fleet.router.records.dir)
    if (records is not None) == bool(options.data or options.prompts):
        fix = "--records FOLDER, --data DATASET or --prompts FILE"
        raise ConfigError("headroom", "needs requests from one source", fix)
    profiles = read_profiles(options.profiles) if options.profiles else None
    if options.rate and profiles is None:
        raise ConfigError("--rate", "needs --profiles", "draftpick profile makes them")
    if records is not None:
        return _of_records(records, options, fleet, profiles, on_progress)
    return _of_data(options, fleet, profiles, on_progress)


def _of_records(
    url: str,
    options: HeadroomOptions,
    fleet: DraftpickConfig | None,
    profiles: Mapping[str, Profile] | None,
    on_progress: ProgressCallback,
) -> HeadroomResult:
    store = RecordStore(url)
    records = store.records()[-_MAX_RECORDS:]
    traffic = Traffic.from_records(records, store.events())
    found, data, choice, source = _judged(traffic, options, on_progress)
    everything, lasted_s = traffic.impute(), records[-1].time - records[0].time
    rate = options.rate or (len(everything) / lasted_s if lasted_s > 0 else None)
    single_s = float(everything.time_s[:, everything.arms.index(found.best)].mean())
    evidence = Evidence(
        found,
        options.min_gain,
        buckets_by_load(traffic.data, traffic.arms, _steps_per_token(everything)),
        _plain(fleet, traffic.data, traffic.arms),
        _loaded(data, choice, profiles, rate, options.seed),
        None if traffic.overhead_s is None else traffic.overhead_s / single_s,
        float((data.temperatures > 0).mean()),
    )
    few = {f"few_answers:{arm}": count for arm, count in traffic.excluded.items()}
    return HeadroomResult(evidence, source, {**traffic.data.dropped, **few})


def _judged(
    traffic: Traffic, options: HeadroomOptions, on_progress: ProgressCallback
) -> tuple[Headroom, Matrix, CrossFittedChoice, str]:
    """Evaluate requests with shadows if there are enough, else single answers, else the few shadows."""
    paired, single = traffic.paired_matrix(), traffic.single_answers()
    n_paired, n_single = len(paired or ()), len(single.measurements)
    if max(n_paired, n_single) < MIN_REQUESTS:
        raise DatasetError(
            f"cannot tell: {n_single} answers of a policy's choice, {n_paired} requests answered by all engines; at "
            f"least {MIN_REQUESTS} of either are needed (set router.shadow.sample_rate for the latter)"
        )
    if n_paired < _ENOUGH_PAIRED and n_single >= MIN_REQUESTS:
        data = traffic.matrix(single)
        choice, groups, slices = _chosen(traffic, data, options, on_progress)
        found = evaluate_logged(traffic, data, choice, groups, slices, worth=options.min_gain, seed=options.seed)
        if not is_rejected(found) or n_paired < MIN_REQUESTS:
            return found, data, choice, "records without shadows: the other engines' times are estimated"
    assert paired is not None
    choice, groups, slices = _chosen(traffic, paired, options, on_progress)
    drawn = traffic.drawn_costs(_COSTS_DRAWN, options.seed)
    found = evaluate_choice(paired, choice, groups, slices, worth=options.min_gain, drawn=drawn, seed=options.seed)
    return found, paired, choice, "records with shadows: every engine answered these requests"


def _chosen(
    traffic: Traffic, data: Matrix, options: HeadroomOptions, on_progress: ProgressCallback
) -> tuple[CrossFittedChoice, Ids, dict[str, Mask]]:
    """Cross-fitted choices (policies trained on all other records), groups of requests, and slices."""
    assert data.contexts is not None
    groups = context_groups(data.contexts)

    def others(held: Ids) -> Matrix:
        return traffic.impute([data.prompt_ids[i] for i in held])

    choice = cross_fit(
        data, options.learner, traffic.costs, groups, seed=options.seed, training_rows=others, on_progress=on_progress
    )
    return choice, groups, find_slices(data, options.seed)


def _of_data(
    options: HeadroomOptions,
    fleet: DraftpickConfig | None,
    profiles: Mapping[str, Profile] | None,
    on_progress: ProgressCallback,
) -> HeadroomResult:
    paths = list(options.data)
    if options.prompts:
        paths.append(_labelled(options))
    loaded = load(*paths)
    name = smallest_featurizer(loaded)
    data, costs, drawn, source = _matrix(loaded, name, fleet, profiles, options)
    assert data.contexts is not None
    groups = context_groups(data.contexts)
    choice = cross_fit(data, options.learner, costs, groups, seed=options.seed, on_progress=on_progress)
    found = evaluate_choice(
        data, choice, groups, find_slices(data, options.seed), worth=options.min_gain, drawn=drawn, seed=options.seed
    )
    buckets: list[Bucket] = []
    if any(m.source != "replay" for m in loaded.measurements):
        buckets = buckets_by_load(loaded, data.arms, _steps_per_token(data))
    evidence = Evidence(
        found, options.min_gain, buckets, _plain(fleet, loaded, data.arms),
        _loaded(data, choice, profiles, options.rate, options.seed), None, float((data.temperatures > 0).mean()),
    )  # fmt: skip
    return HeadroomResult(evidence, source, data.dropped)


def _labelled(options: HeadroomOptions) -> Path:
    """Label the prompts into a folder by `draftpick label`; its messages go to stderr.

    Each choice of prompts and fleet has its own folder: prompts of two files may have the same ids.
    """
    fleet = options.config or EMBEDDED
    chosen = load_prompts(
        options.prompts, options.n, options.seed, options.sampled_share, options.max_tokens, options.split,
        options.overlap,
    )  # fmt: skip
    settings = f"{resolve(fleet).model_dump_json(exclude={'router'})} {options.seed} {chosen}".encode()
    folder = options.output_dir / sha256(settings).hexdigest()[:12]
    with redirect_stdout(sys.stderr):
        labelled = label_prompts(resolve(fleet), chosen, folder, lengths=False, seed=options.seed)
    err.print(f"{labelled.prompts} prompts labelled under {len(labelled.engines)} engines", highlight=False)
    return folder


def _matrix(
    loaded: Dataset,
    name: str,
    fleet: DraftpickConfig | None,
    profiles: Mapping[str, Profile] | None,
    options: HeadroomOptions,
) -> tuple[Matrix, Costs, list[Costs], str]:
    """Times of all arms, measured, or from replayed acceptance and costs of a step; with a description of the costs."""
    arms = loaded.arms
    if profiles is not None:
        if missing := [arm for arm in arms if arm not in profiles]:
            raise DatasetError(f"no profile of {', '.join(missing)} (found: {', '.join(profiles)})")
        costs = unloaded_costs({arm: profiles[arm] for arm in arms})
        return matrix(loaded, arms, featurizer=name, costs=costs), costs, [], "acceptance, and steps as profiled"
    if any(m.source != "replay" for m in loaded.measurements):
        data, costs = matrix_of(loaded, name, arms)
        replayed = any(m.source == "replay" for m in loaded.measurements)
        drawn = drawn_costs(loaded, arms, _COSTS_DRAWN, options.seed) if replayed else []
        return data, costs, drawn, "replayed acceptance, and steps as measured" if replayed else "measured times"
    from draftpick.deploy.workflows.learning_curve import costs_of

    policy = fleet.router.policy if fleet is not None else EMBEDDED
    try:
        costs = costs_of(policy)
        data = matrix(loaded, arms, featurizer=name, costs=costs)
    except DatasetError as error:
        raise DatasetError(
            f"replayed requests have no times ({error}): set --profiles FOLDER (draftpick profile), or live "
            "measurements of these engines (draftpick collect) with another --data"
        ) from error
    return data, costs, [], f"replayed acceptance, and steps as they were when the policy {policy!r} was trained"


def _steps_per_token(data: Matrix) -> dict[str, float]:
    return dict(zip(data.arms, (1 / np.maximum(data.acceptance_length, 1.0)).mean(0).tolist(), strict=True))


def _plain(fleet: DraftpickConfig | None, data: Dataset, arms: tuple[str, ...]) -> str | None:
    """The arm without a drafter: by the configuration, or the only one that never accepted a draft."""
    if fleet is not None:
        known = [engine.name for engine in fleet.engines if engine.drafts is False and engine.name in arms]
        if known:
            return known[0]
    drafts = {m.arm for m in data.measurements if (m.outcome.acceptance_length or 1.0) > 1.0}
    silent = [arm for arm in arms if arm not in drafts]
    return silent[0] if len(silent) == 1 else None


def _loaded(
    data: Matrix, choice: CrossFittedChoice, profiles: Mapping[str, Profile] | None, rate: float | None, seed: int
) -> Loaded | None:
    """Simulate this rate, if there are profiles of all arms and predictions."""
    if profiles is None or rate is None or choice.predicted_tau is None or not set(data.arms) <= profiles.keys():
        return None
    return under_load(data, choice.predicted_tau, profiles, rate, seed)


def as_json(shown: HeadroomResult) -> dict[str, Any]:
    """The result as JSON."""
    evidence = shown.evidence
    return {
        "verdict": evidence.verdict,
        "in_words": describe(evidence),
        "against": reasons_against(evidence),
        "crossovers": crossovers(evidence),
        "source": shown.source,
        "left_out": dict(shown.excluded),
        "share_of_oracle": evidence.found.share_of_oracle,
        **asdict(evidence),
    }
