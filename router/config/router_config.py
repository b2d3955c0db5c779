"""The whole configuration as one frozen model: the fleet and the router in front of it."""

from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from draftpick.engines.circuit_breaker import BreakerConfig
from draftpick.engines.config import EMBEDDED, FleetConfig, Model, did_you_mean
from draftpick.engines.errors import ConfigError
from draftpick.router.config.former_fields import FLEET, LIVE, rename_former
from draftpick.router.config.sections import (
    AdmissionConfig,
    AutoscalingConfig,
    ExplorationConfig,
    KeysConfig,
    LoadConfig,
    LogsConfig,
    OnlineConfig,
    PrefixCacheConfig,
    QuarantineConfig,
    ShadowConfig,
    TracingConfig,
)

PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
    "/version",
)
"""What any key may ask of an engine; all else of an engine needs the scope `admin`."""


class RecordsConfig(Model):
    """Where attempts are recorded. Prompt text is never among what is recorded."""

    dir: Path | None = Field(None, description="folder of the segments; absent: records are not kept")
    queue_size: int = Field(
        10_000, ge=1, description="records that may wait for the disk; more are dropped and counted"
    )
    segment_bytes: int = Field(64 * 2**20, ge=1024, description="size at which a new segment is begun")
    segment_age_s: float = Field(3600.0, gt=0, description="age at which a new segment is begun")
    keep_segments: int = Field(64, ge=1, description="older segments of the same router are removed")


class RouterConfig(Model):
    """How requests are routed."""

    policy: str = Field(
        "fixed",
        min_length=1,
        description="`embedded`, `fixed`, `uniform`, the folder of a policy or of a registry of them, or a file that "
        "holds one of these",
    )
    exploration: ExplorationConfig = Field(
        default_factory=ExplorationConfig, description="requests that try other engines than the policy's choice"
    )
    shadow: ShadowConfig = Field(
        default_factory=ShadowConfig, description="finished requests that all other engines answer, too"
    )
    online: OnlineConfig = Field(default_factory=OnlineConfig, description="what a running router learns by itself")
    load: LoadConfig = Field(default_factory=LoadConfig, description="how the load of engines counts")
    prefix_cache: PrefixCacheConfig = Field(
        default_factory=PrefixCacheConfig, description="whether a conversation prefers the replica that has read it"
    )
    autoscaling: AutoscalingConfig = Field(
        default_factory=AutoscalingConfig, description="how engines with `autoscaling` are scaled together"
    )
    default_engine: str = Field(min_length=1, description="the engine that serves when a policy cannot")
    featurizer: str = Field(
        "auto",
        description="`auto`: what the policy needs; `none`, `lexical`, `static` (token vectors), `embedded` (a "
        "sentence encoder), or the path of another one",
    )
    featurize_timeout_s: float = Field(2.0, gt=0, description="a decision waits no longer for its features")
    max_attempts: int = Field(3, ge=1, le=10, description="engines tried before the first byte")
    wait_for_engine_s: float = Field(
        10.0, ge=0, description="how long a request waits when no engine listens, as while all are being replaced"
    )
    first_byte_timeout_s: float = Field(120.0, gt=0, description="longest wait for the first byte of a stream")
    stream_idle_timeout_s: float = Field(120.0, gt=0, description="longest wait for each further byte of a stream")
    timeout_s: float = Field(1800.0, gt=0, description="longest duration of one answer")
    resume_streams: bool = Field(
        False, description="whether another engine goes on with a greedy stream that broke, from the text so far"
    )
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="larger request bodies are refused")
    max_header_bytes: int = Field(32 * 2**10, ge=1024, description="requests with more headers are refused")
    max_json_depth: int = Field(128, ge=8, description="request bodies that are nested deeper are refused")
    paths: tuple[str, ...] = Field(PATHS, description="what any key may ask of an engine; `*` stands for anything")
    keys: KeysConfig = Field(default_factory=KeysConfig, description="who may ask")
    admission: AdmissionConfig = Field(default_factory=AdmissionConfig, description="how many at once")
    breaker: BreakerConfig = Field(default_factory=BreakerConfig, description="when a failing replica is left alone")
    quarantine: QuarantineConfig = Field(
        default_factory=QuarantineConfig, description="when an arm whose drafts are lost is left alone"
    )
    allow_engine_pinning: bool = Field(True, description="whether the header x-draftpick-arm may choose the engine")
    num_replicas: int = Field(1, ge=1, description="replicas of the router")
    seed: int | None = Field(None, description="seed of the policy's sampling; absent: from the system")
    records: RecordsConfig = Field(default_factory=RecordsConfig, description="where attempts are recorded")
    logs: LogsConfig = Field(default_factory=LogsConfig, description="what is logged")
    tracing: TracingConfig = Field(default_factory=TracingConfig, description="which requests leave spans")
    deployment_options: dict[str, Any] = Field(
        default_factory=dict, description="further options of Serve's deployment"
    )


class LiveExplorationConfig(Model):
    """What of exploration a running router takes."""

    rate: float = Field(ge=0, le=1, description="in place of `router.exploration.rate`")


class LiveConfig(Model):
    """What a running router takes without a restart, as Serve's `user_config`; what is absent stays as it is."""

    policy: str | None = Field(None, min_length=1, description="in place of `router.policy`")
    exploration: LiveExplorationConfig | None = Field(None, description="of exploration, what may change")
    admission: AdmissionConfig | None = Field(
        None, description="in place of `router.admission`; what it leaves out has its default"
    )

    @model_validator(mode="before")
    @classmethod
    def _former_fields(cls, data: Any) -> Any:
        return rename_former(data, LIVE)


class DraftpickConfig(FleetConfig):
    """One YAML file: target, engines, router."""

    router: RouterConfig = Field(description="how requests are routed")

    @model_validator(mode="before")
    @classmethod
    def _former_fields(cls, data: Any) -> Any:
        return rename_former(data, FLEET)

    @model_validator(mode="after")
    def _default_exists(self) -> Self:
        named = {
            "router.default_engine": self.router.default_engine,
            "router.load.baseline_engine": self.router.load.baseline_engine,
        }
        for field, engine in named.items():
            if engine is not None and engine not in self.arms:
                raise ValueError(
                    f"{field} names {engine!r}, which is no engine "
                    f"({did_you_mean(engine, self.arms)}engines: {', '.join(self.arms)})"
                )
        return self

    @property
    def baseline(self) -> str:
        """The engine that is the least risk under a load that nobody knows: one without a drafter."""
        plain = (e.name for e in self.engines if e.drafts is False)
        return self.router.load.baseline_engine or next(plain, self.router.default_engine)


class ConfigProblems(ConfigError):
    """All that is wrong with a configuration, one line each: path, problem, cure."""

    def __init__(self, source: str, problems: list[str]) -> None:
        super().__init__(source, f"{len(problems)} problem{'s' if len(problems) != 1 else ''} found")
        self.problems = problems

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}\n" + "\n".join(f"  {line}" for line in self.problems)


def load_config(source: str | Path | dict[str, Any]) -> DraftpickConfig:
    """The configuration in a YAML file or a dict. Raises `ConfigError` with the path of each wrong field."""
    if isinstance(source, dict):
        return _validate("configuration", source)
    path = Path(source)
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}", "name a YAML file that exists") from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), "is not valid YAML: it is no UTF-8") from error
    except yaml.YAMLError as error:
        # The lines around the fault may hold a secret: only its place and kind are shown.
        raise ConfigError(str(path), f"is not valid YAML{_place(error)}") from None
    if not isinstance(data, dict):
        raise ConfigError(str(path), "holds no mapping", "write `target`, `engines` and `router`")
    return _validate(str(path), data)


def _place(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{where}: {problem}" if problem else where


def _validate(source: str, data: dict[str, Any]) -> DraftpickConfig:
    try:
        return DraftpickConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigProblems(source, [_line(detail) for detail in error.errors()]) from error


def _line(detail: ErrorDetails) -> str:
    path = ".".join(str(part) for part in detail["loc"])
    kind, text = detail["type"], detail["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"{path}: unknown field ({_suggestion(detail['loc'])})"
    if kind == "missing":
        return f"{path}: is required and missing (add it)"
    return f"{path}: {text}" if path else text


def _suggestion(loc: tuple[int | str, ...]) -> str:
    """The nearest field name at the place of an unknown one, and all names there."""
    fields = DraftpickConfig.model_fields
    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        inner = _inner_model(fields[part].annotation) if part in fields else None
        if inner is None:
            return "remove it"
        fields = inner.model_fields
    return f"{did_you_mean(str(loc[-1]), fields)}allowed: {', '.join(sorted(fields))}"


def _inner_model(annotation: Any) -> type[Model] | None:
    """The configuration model inside an annotation such as `tuple[Engine, ...]` or `Mock | None`."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and hasattr(candidate, "model_fields"):
            return candidate
    return None


__all__ = [
    "EMBEDDED",
    "ConfigProblems",
    "DraftpickConfig",
    "LiveConfig",
    "RecordsConfig",
    "RouterConfig",
    "load_config",
]
