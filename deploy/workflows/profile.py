"""Measures the profiles of a fleet's engines, one at a time: each is started alone, or already running."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from draftpick.deploy.config import resolve
from draftpick.engines.config import did_you_mean
from draftpick.engines.errors import ConfigError, EngineError
from draftpick.engines.profile.measure import ProfilePlan, ProfileResult, ProgressCallback, measure_profile
from draftpick.engines.profile.profile import MODES, Profile, ProfileError
from draftpick.policy_training.workloads import generate
from draftpick.router.config.router_config import DraftpickConfig

_PROMPTS = 24


@dataclass(frozen=True, slots=True)
class Subject:
    """An engine to measure: running at `url`, or to be started from a fleet."""

    name: str
    url: str | None = None
    fleet: DraftpickConfig | None = None

    @contextmanager
    def running(self) -> Iterator[str]:
        """Yield its address; a started engine has the machine to itself."""
        if self.url is not None:
            yield self.url
            return
        from ray import serve

        from draftpick.deploy.app import APP_NAME
        from draftpick.deploy.launch.ports import free_port
        from draftpick.deploy.launch.ray_serve import running

        assert self.fleet is not None
        with running(self.fleet, port=free_port()):
            replica = serve.get_deployment_handle(f"engine-{self.name}", APP_NAME)
            yield str(replica.address.remote().result(timeout_s=60))


def subjects(fleet: DraftpickConfig | None, names: Sequence[str], urls: Sequence[str]) -> list[Subject]:
    """The named engines of a fleet, by default all, and those at `NAME=URL`.

    Raises `ConfigError` for an unknown engine.
    """
    at = dict(map(_named, urls))
    if fleet is None:
        if names:
            raise ConfigError("--engine", "needs a fleet", "name the fleet of the engines, or remove --engine")
        if not at:
            raise ConfigError("config", "nothing to measure", "name a fleet, or give --url NAME=URL")
        return [Subject(name, url) for name, url in at.items()]
    if unknown := [name for name in names if name not in fleet.names]:
        fix = f"{did_you_mean(unknown[0], fleet.names)}engines: {', '.join(fleet.names)}"
        raise ConfigError("--engine", f"unknown engine {unknown[0]!r}", fix)
    at = {one.name: str(one.url) for one in fleet.engines if one.url is not None} | at
    wanted = dict.fromkeys([*(one.name for one in fleet.engines if not names or one.name in names), *map(_name, urls)])
    return [
        Subject(name, at[name]) if name in at else Subject(name, fleet=_single_engine_fleet(fleet, name))
        for name in wanted
    ]


def _single_engine_fleet(fleet: DraftpickConfig, name: str) -> DraftpickConfig:
    """A fleet of one replica of this engine, without a measurement at startup."""
    fields = fleet.model_dump(mode="json")
    (one,) = [engine for engine in fields["engines"] if engine["name"] == name]
    one["deployment"] |= {"num_replicas": 1, "autoscaling": None, "profile": "off"}
    router = {"policy": "fixed", "featurizer": "none", "default_engine": name}
    return resolve({**fields, "engines": [one], "router": router})


def _named(text: str) -> tuple[str, str]:
    name, _, url = text.partition("=")
    if not name or not url.startswith(("http://", "https://")):
        raise ConfigError("--url", f"{text!r} is not NAME=URL", "write --url plain=http://127.0.0.1:8000")
    return name, url


def _name(text: str) -> str:
    return _named(text)[0]


def measured(name: str, url: str, plan: ProfilePlan, on_progress: ProgressCallback) -> ProfileResult:
    """Measure one engine with prompts of all kinds. Raises `ProfileError`, which names the engine."""
    texts = [prompt.text for prompt in generate(max(_PROMPTS, *plan.batches), seed=0)]
    try:
        return asyncio.run(measure_profile(url, texts, plan, on_progress=on_progress))
    except (ProfileError, EngineError) as error:
        raise ProfileError(f"engine {name} at {url}: {error}") from error


def save(profiles: Mapping[str, Profile], folder: Path) -> None:
    """Write one JSON file per engine."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, profile in profiles.items():
        (folder / f"{name}.json").write_bytes(orjson.dumps(profile.as_json(), option=orjson.OPT_INDENT_2) + b"\n")


def plot(profiles: Mapping[str, Profile], path: Path) -> None:
    """Plot milliseconds of a step by concurrent requests, in each sampling mode, at the shortest context."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(MODES), figsize=(15, 4), layout="constrained", sharey=True)
    for mode, (axes, title) in enumerate(zip(panels, MODES, strict=True)):
        for name, profile in profiles.items():
            steps_ms = [1000 * profile.step(batch, profile.contexts[0], mode) for batch in profile.batches]
            axes.plot(profile.batches, steps_ms, "o-", label=name)
        axes.set_xscale("log", base=2)
        grid = sorted({batch for profile in profiles.values() for batch in profile.batches})
        axes.set_xticks(grid, [str(batch) for batch in grid])
        axes.set_xlabel("concurrent requests")
        axes.set_title(title)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("ms of a decoding step")
    panels[-1].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
