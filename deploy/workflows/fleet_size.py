"""`draftpick simulate` and `draftpick plan`: figures of simulated fleets, from profiles and traffic."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftpick.engines.arms import NONE, pool_arm
from draftpick.engines.config import EMBEDDED
from draftpick.engines.errors import ConfigError
from draftpick.engines.profile.profile import Profile, ProfileError
from draftpick.policy_training.data.dataset import load
from draftpick.policy_training.data.from_records import from_records
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.simulator.capacity_plan import WARM_UP
from draftpick.policy_training.simulator.engine import Arm
from draftpick.policy_training.simulator.fleet import Fleet
from draftpick.policy_training.simulator.routing import strategy
from draftpick.policy_training.simulator.simulate import Run, intervals, simulate
from draftpick.policy_training.simulator.traffic import (
    RecordedTraffic,
    SyntheticTraffic,
    Traffic,
    dataset_traffic,
    predicted_tau,
    read_spec,
    records_traffic,
)
from draftpick.router.policies import SHIPPED, read


@dataclass(frozen=True, slots=True)
class TrafficOptions:
    """Where requests come from: a traffic spec, datasets, or records (`policy` predicts engines without records)."""

    spec: str | None
    data: Sequence[Path]
    records: Path | None
    policy: str | None
    rate: float | None
    n: int

    def read(self, arms: Mapping[str, Arm]) -> Traffic:
        """Traffic on these engines; `rate`: requests per second. Raises `ConfigError` unless there is one source."""
        if sum([self.spec is not None, bool(self.data), self.records is not None]) != 1:
            raise ConfigError("traffic", "needs one source", "give one of --traffic, --data and --records")
        profiles = {mode.column: mode.profile for arm in arms.values() for mode in arm.modes}
        if self.spec is not None:
            spec = read_spec(self.spec)
            bursts = spec.bursts.bursts() if spec.bursts else None
            return SyntheticTraffic(spec.rows(list(profiles)), self.n, self.rate or spec.rate, bursts)
        if self.data:
            return SyntheticTraffic(dataset_traffic(load(*self.data), profiles), self.n, self.rate or 1.0)
        assert self.records is not None
        prior = None if self.policy is None else read(SHIPPED if self.policy == EMBEDDED else Path(self.policy))
        return RecordedTraffic(records_traffic(from_records(self.records), profiles, prior), self.rate, self.n)


def read_arms(paths: Sequence[Path], replica_accelerators: Sequence[str], pools: Sequence[str] = ()) -> dict[str, Arm]:
    """Read engines by name from the profiles in `paths`; `replica_accelerators`: ENGINE=N, else 1.

    `pools`: NAME=ENGINE+ENGINE, a pool of these engines' drafters with their step times, the first one without a
    drafter. The profile of a pool has those of its drafters itself.

    Raises `ConfigError`, and `ProfileError` for a file that is not a profile.
    """
    wanted = counts(replica_accelerators, "--replica-accelerators")
    files = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    arms = {}
    for file in files:
        try:
            profile = Profile.from_json(file.read_bytes())
        except ProfileError as error:
            raise ProfileError(f"{file}: {error}") from error
        number = wanted.pop(file.stem, 1)
        size: dict[str, Any] = {"accelerators": number, "price": float(number)}
        if profile.drafter_s:
            drafters = {pool_arm(file.stem, one): profile.with_drafter(one) for one in (NONE, *profile.drafter_s)}
            arms[file.stem] = Arm.as_pool(file.stem, drafters, **size)
        else:
            arms[file.stem] = Arm.from_profile(file.stem, profile, **size)
    if not arms:
        raise ConfigError("--profiles", "no <engine>.json found", "make them with `draftpick profile --output-dir`")
    singles = dict(arms)
    for text in pools:
        name, _, given = text.partition("=")
        if not name or any(one not in singles for one in given.split("+")):
            known = f"engines with a profile: {', '.join(singles)}"
            raise ConfigError("--pool", f"{text!r} is not NAME=ENGINE+ENGINE of engines with a profile", known)
        members = [singles[one] for one in given.split("+")]
        number = wanted.pop(name, members[0].accelerators)
        modes = {one.name: one.modes[0].profile for one in members}
        arms[name] = Arm.as_pool(name, modes, accelerators=number, price=float(number))
    if wanted:
        names = ", ".join(arms)
        raise ConfigError("--replica-accelerators", f"no profile of {', '.join(wanted)}", f"name one of: {names}")
    return arms


def counts(pairs: Iterable[str], option: str) -> dict[str, int]:
    """`ENGINE=NUMBER` texts as a mapping; numbers are 1 or more. Raises `ConfigError`."""
    found = {}
    for text in (pair.strip() for pair in pairs):
        name, _, number = text.partition("=")
        if text and not (name and number.isdigit() and int(number) >= 1):
            raise ConfigError(option, f"{text!r} is not ENGINE=NUMBER", "write general=2; numbers are 1 or more")
        if text:
            found[name] = int(number)
    return found


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """`predictability`: share of the variance of log tau that the policy predicts; `seeds`: one run each."""

    strategies: Sequence[str]
    predictability: float
    seeds: range


def fleets_to_compare(fleet: Fleet, arms: Mapping[str, Arm], strategies: Sequence[str]) -> dict[str, tuple[Fleet, str]]:
    """(fleet, strategy) by name: `fleet` under each strategy, and in brackets each engine alone on its accelerators."""
    fleets = {name: (fleet, name) for name in strategies}
    for name, arm in arms.items():
        if replicas := fleet.accelerators // arm.accelerators:
            fleets[f"[{name}]"] = (Fleet((arm,), (replicas,)), "least_loaded")
    return fleets


def simulate_fleets(
    fleets: Mapping[str, tuple[Fleet, str]],
    traffic: Traffic,
    options: SimulationOptions,
    on_progress: Callable[[], None],
) -> dict[str, list[Run]]:
    """The runs of each fleet, all on the same traffic, a run for each seed. `on_progress`: called after each run."""
    runs: dict[str, list[Run]] = {name: [] for name in fleets}
    for seed in options.seeds:
        requests = traffic(seed)
        tau = predicted_tau(requests.tau, options.predictability, seed)
        for label, (fleet, name) in fleets.items():
            runs[label].append(simulate(fleet, requests, strategy(name, fleet, requests, tau)))
            on_progress()
    return runs


def figures(runs: Mapping[str, list[Run]]) -> dict[str, dict[str, Interval]]:
    """Figures of each fleet after warm-up, with their range over the seeds."""
    return {name: intervals([run.figures(WARM_UP) for run in several]) for name, several in runs.items()}
