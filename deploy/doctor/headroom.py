"""What `draftpick doctor --headroom` does: records, datasets or prompts in, a verdict with its reasons out."""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from deploy.config import resolve
from deploy.console import err, some_prompts
from deploy.labelling import label_prompts
from deploy.training import matrix_of
from engines.config import EMBEDDED
from engines.errors import ConfigError
from engines.profile import Profile
from policy_training.costs import Costs
from policy_training.dataset import Dataset, DatasetError, lightest, load
from policy_training.headroom.advice import Evidence, against, crossovers, in_words
from policy_training.headroom.crossover import Bucket, by_load
from policy_training.headroom.gain import (
    FEWEST,
    FOLDS,
    SPLITS,
    Choice,
    Headroom,
    Ids,
    Mask,
    Told,
    cross_fitted,
    groups_of,
    judge,
)
from policy_training.headroom.logged import judge_logged, refused
from policy_training.headroom.slices import slices_of
from policy_training.headroom.traffic import Traffic, drawn_costs
from policy_training.headroom.under_load import Loaded, costs_alone, read_profiles, under_load
from policy_training.learners import learner as learner_of
from policy_training.matrix import Matrix, matrix
from policy_training.record_store import RecordStore
from router.config import DraftpickConfig

FITS = FOLDS * SPLITS
"""Policies that are fitted; twice as many where single answers are refused."""
_ENOUGH_PAIRED = 100
_COSTS_DRAWN = 40
_MOST_RECORDS = 20_000


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command was told. `config`: a fleet, None: none was named."""

    config: str | None
    records: str | None
    data: list[Path]
    prompts: Path | None
    profiles: Path | None
    rate: float | None
    worth: float
    learner: str
    n: int
    max_tokens: int
    sampled_share: float
    output: Path
    seed: int

    def fleet(self) -> DraftpickConfig | None:
        """The configuration that was named."""
        return resolve(self.config) if self.config is not None else None


@dataclass(frozen=True, slots=True)
class Outlook:
    """The evidence; `source`: of what kind it is; `left_out`: what was not looked at, and why, in counts."""

    evidence: Evidence
    source: str
    left_out: Mapping[str, int]


def outlook(asked: Asked, told: Told) -> Outlook:
    """Judge what was asked for. `told`: called after each of some `FITS` fits. Raises `DatasetError`, `ConfigError`."""
    learner_of(asked.learner)
    fleet = asked.fleet()
    records = asked.records
    if not (asked.data or asked.prompts or records) and fleet is not None and fleet.router.records.dir is not None:
        records = str(fleet.router.records.dir)
    if (records is not None) == bool(asked.data or asked.prompts):
        cure = "--records FOLDER, --data DATASET or --prompts FILE"
        raise ConfigError("--headroom", "needs requests to judge by, of one source", cure)
    profiles = read_profiles(asked.profiles) if asked.profiles else None
    if asked.rate and profiles is None:
        raise ConfigError("--rate", "needs --profiles", "draftpick profile makes them")
    if records is not None:
        return _of_records(records, asked, fleet, profiles, told)
    return _of_data(asked, fleet, profiles, told)


def _of_records(
    url: str, asked: Asked, fleet: DraftpickConfig | None, profiles: Mapping[str, Profile] | None, told: Told
) -> Outlook:
    store = RecordStore(url)
    records = store.records()[-_MOST_RECORDS:]
    traffic = Traffic.of(records, store.events())
    found, data, choice, source = _judged(traffic, asked, told)
    everything, lasted_s = traffic.imputed(), records[-1].time - records[0].time
    rate = asked.rate or (len(everything) / lasted_s if lasted_s > 0 else None)
    single_s = float(everything.time_s[:, everything.arms.index(found.best)].mean())
    evidence = Evidence(
        found,
        asked.worth,
        by_load(traffic.data, traffic.arms, _steps_per_token(everything)),
        _plain(fleet, traffic.data, traffic.arms),
        _loaded(data, choice, profiles, rate, asked.seed),
        None if traffic.overhead_s is None else traffic.overhead_s / single_s,
        float((data.temperatures > 0).mean()),
    )
    few = {f"few_answers:{arm}": count for arm, count in traffic.left_out.items()}
    return Outlook(evidence, source, {**traffic.data.dropped, **few})


def _judged(traffic: Traffic, asked: Asked, told: Told) -> tuple[Headroom, Matrix, Choice, str]:
    """By requests with shadows where there are enough, else by single answers, else by few shadows."""
    paired, single = traffic.paired(), traffic.single()
    n_paired, n_single = len(paired or ()), len(single.measurements)
    if max(n_paired, n_single) < FEWEST:
        raise DatasetError(
            f"cannot tell: {n_single} answers that a policy drew, {n_paired} requests that all engines answered; at "
            f"least {FEWEST} of one kind are needed (router.shadow.share makes the latter)"
        )
    if n_paired < _ENOUGH_PAIRED and n_single >= FEWEST:
        data = traffic.matrix_of(single)
        choice, groups, slices = _chosen(traffic, data, asked, told)
        found = judge_logged(traffic, data, choice, groups, slices, worth=asked.worth, seed=asked.seed)
        if not refused(found) or n_paired < FEWEST:
            return found, data, choice, "records without shadows: what other engines would have taken is estimated"
    assert paired is not None
    choice, groups, slices = _chosen(traffic, paired, asked, told)
    drawn = traffic.drawn_costs(_COSTS_DRAWN, asked.seed)
    found = judge(paired, choice, groups, slices, worth=asked.worth, drawn=drawn, seed=asked.seed)
    return found, paired, choice, "records with shadows: every engine answered these requests"


def _chosen(traffic: Traffic, data: Matrix, asked: Asked, told: Told) -> tuple[Choice, Ids, dict[str, Mask]]:
    """What policies choose that learned from all other records, groups of requests, and kinds of them."""
    assert data.contexts is not None
    groups = groups_of(data.contexts)

    def others(held: Ids) -> Matrix:
        return traffic.imputed([data.prompt_ids[i] for i in held])

    choice = cross_fitted(data, asked.learner, traffic.costs, groups, seed=asked.seed, grown=others, told=told)
    return choice, groups, slices_of(data, asked.seed)


def _of_data(
    asked: Asked, fleet: DraftpickConfig | None, profiles: Mapping[str, Profile] | None, told: Told
) -> Outlook:
    paths = list(asked.data)
    if asked.prompts is not None:
        paths.append(_labelled(asked, asked.prompts))
    loaded = load(*paths)
    name = lightest(loaded)
    data, costs, drawn, source = _matrix(loaded, name, fleet, profiles, asked)
    assert data.contexts is not None
    groups = groups_of(data.contexts)
    choice = cross_fitted(data, asked.learner, costs, groups, seed=asked.seed, told=told)
    found = judge(data, choice, groups, slices_of(data, asked.seed), worth=asked.worth, drawn=drawn, seed=asked.seed)
    buckets: list[Bucket] = []
    if any(m.source != "replay" for m in loaded.measurements):
        buckets = by_load(loaded, data.arms, _steps_per_token(data))
    evidence = Evidence(
        found, asked.worth, buckets, _plain(fleet, loaded, data.arms),
        _loaded(data, choice, profiles, asked.rate, asked.seed), None, float((data.temperatures > 0).mean()),
    )  # fmt: skip
    return Outlook(evidence, source, data.dropped)


def _labelled(asked: Asked, prompts: Path) -> Path:
    """The folder of the replayed prompts; `draftpick label` fills it, and what it says goes to stderr.

    A folder for each file and setting: prompts of two files may have the same ids.
    """
    fleet, settings = asked.config or EMBEDDED, (asked.n, asked.sampled_share, asked.max_tokens, asked.seed)
    told = f"{resolve(fleet).model_dump_json(exclude={'router'})} {settings}".encode()
    folder = asked.output / sha256(prompts.read_bytes() + told).hexdigest()[:12]
    chosen = some_prompts(prompts, asked.n, asked.seed, asked.sampled_share, asked.max_tokens)
    with redirect_stdout(sys.stderr):
        labelled = label_prompts(resolve(fleet), chosen, folder, lengths=False, seed=asked.seed)
    err.print(f"{labelled.prompts} prompts labelled under {len(labelled.engines)} engines", highlight=False)
    return folder


def _matrix(
    loaded: Dataset, name: str, fleet: DraftpickConfig | None, profiles: Mapping[str, Profile] | None, asked: Asked
) -> tuple[Matrix, Costs, list[Costs], str]:
    """Times of all arms: measured, or of replayed acceptance and costs of a step; whose costs is said."""
    arms = loaded.arms
    if profiles is not None:
        if missing := [arm for arm in arms if arm not in profiles]:
            raise DatasetError(f"no profile of {', '.join(missing)} (there are: {', '.join(profiles)})")
        costs = costs_alone({arm: profiles[arm] for arm in arms})
        return matrix(loaded, arms, featurizer=name, costs=costs), costs, [], "acceptance, and steps as profiled"
    if any(m.source != "replay" for m in loaded.measurements):
        data, costs = matrix_of(loaded, name, arms)
        replayed = any(m.source == "replay" for m in loaded.measurements)
        drawn = drawn_costs(loaded, arms, _COSTS_DRAWN, asked.seed) if replayed else []
        return data, costs, drawn, "replayed acceptance, and steps as measured" if replayed else "measured times"
    from deploy.curve import costs_of

    policy = fleet.router.policy if fleet is not None else EMBEDDED
    try:
        costs = costs_of(policy)
        data = matrix(loaded, arms, featurizer=name, costs=costs)
    except DatasetError as error:
        raise DatasetError(
            f"replayed requests have no times ({error}): give --profiles FOLDER (draftpick profile), or live "
            "measurements of these engines (draftpick collect) with another --data"
        ) from error
    return data, costs, [], f"replayed acceptance, and steps as they were when the policy {policy!r} was trained"


def _steps_per_token(data: Matrix) -> dict[str, float]:
    return dict(zip(data.arms, (1 / np.maximum(data.acceptance_length, 1.0)).mean(0).tolist(), strict=True))


def _plain(fleet: DraftpickConfig | None, data: Dataset, arms: tuple[str, ...]) -> str | None:
    """The arm without a drafter: by the configuration, or the only one that never accepted anything."""
    if fleet is not None:
        known = [engine.name for engine in fleet.engines if engine.drafts is False and engine.name in arms]
        if known:
            return known[0]
    drafts = {m.arm for m in data.measurements if (m.outcome.acceptance_length or 1.0) > 1.0}
    silent = [arm for arm in arms if arm not in drafts]
    return silent[0] if len(silent) == 1 else None


def _loaded(
    data: Matrix, choice: Choice, profiles: Mapping[str, Profile] | None, rate: float | None, seed: int
) -> Loaded | None:
    """A simulation at this rate, where there are profiles of all arms and something was foreseen."""
    if profiles is None or rate is None or choice.foreseen is None or not set(data.arms) <= profiles.keys():
        return None
    return under_load(data, choice.foreseen, profiles, rate, seed)


def as_json(shown: Outlook) -> dict[str, Any]:
    """All of it for a program."""
    evidence = shown.evidence
    return {
        "verdict": evidence.verdict,
        "in_words": in_words(evidence),
        "against": against(evidence),
        "crossovers": crossovers(evidence),
        "source": shown.source,
        "left_out": dict(shown.left_out),
        "share_of_oracle": evidence.found.share_of_oracle,
        **asdict(evidence),
    }
