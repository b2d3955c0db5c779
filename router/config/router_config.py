"""The complete configuration as one frozen model: fleet and router."""

from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from draftpick.engines.arms import default_arm
from draftpick.engines.circuit_breaker import BreakerConfig
from draftpick.engines.config import EMBEDDED, FleetConfig, Model, did_you_mean
from draftpick.engines.errors import ConfigError
from draftpick.router.config.former_fields import FLEET, LIVE, rename_former
from draftpick.router.config.sections import (
    AdmissionConfig,
    AutoscalingConfig,
    EppConfig,
    ExplorationConfig,
    KeysConfig,
    LeasesConfig,
    LoadConfig,
    LogsConfig,
    OnlineConfig,
    PrefixCacheConfig,
    QuarantineConfig,
    SessionsConfig,
    ShadowConfig,
    TracingConfig,
)

PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/responses/*",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
    "/version",
)
"""Engine paths open to every client; all others need a key with the scope `admin`."""


class RecordsConfig(Model):
    """Recording of attempts. Prompt text is never recorded."""

    dir: Path | None = Field(None, description="folder of the segments; absent: no records")
    queue_size: int = Field(
        10_000, ge=1, description="maximum number of records queued for the disk; more are dropped and counted"
    )
    segment_bytes: int = Field(64 * 2**20, ge=1024, description="size at which a new segment starts")
    segment_age_s: float = Field(3600.0, gt=0, description="age at which a new segment starts")
    keep_segments: int = Field(64, ge=1, description="segments kept per router; older ones are removed")


class RouterConfig(Model):
    """Routing of requests."""

    policy: str = Field(
        "fixed",
        min_length=1,
        description="`embedded`, `fixed`, `uniform`, the folder of a policy or of a policy registry, or a file that "
        "contains one of these",
    )
    exploration: ExplorationConfig = Field(
        default_factory=ExplorationConfig, description="exploration of engines other than the policy's choice"
    )
    shadow: ShadowConfig = Field(
        default_factory=ShadowConfig, description="replay of finished requests on all other engines"
    )
    online: OnlineConfig = Field(default_factory=OnlineConfig, description="online learning and drift detection")
    load: LoadConfig = Field(default_factory=LoadConfig, description="load-aware routing")
    prefix_cache: PrefixCacheConfig = Field(
        default_factory=PrefixCacheConfig, description="preference for replicas that have cached a prompt's prefix"
    )
    sessions: SessionsConfig = Field(
        default_factory=SessionsConfig, description="memory of sessions, which clients name"
    )
    autoscaling: AutoscalingConfig = Field(
        default_factory=AutoscalingConfig, description="joint scaling of engines with `deployment.autoscaling`"
    )
    default_engine: str = Field(min_length=1, description="engine that serves when the policy cannot decide")
    featurizer: str = Field(
        "auto",
        description="`auto`: what the policy needs; `none`, `lexical`, `static` (token vectors), `embedded` (sentence "
        "encoder), or the path of another encoder",
    )
    featurize_timeout_s: float = Field(2.0, gt=0, description="timeout of computing the features of a request")
    max_attempts: int = Field(3, ge=1, le=10, description="maximum number of engines tried before the first byte")
    wait_for_engine_s: float = Field(
        10.0,
        ge=0,
        description="longest wait while no engine is reachable, as during a rolling update",
    )
    first_byte_timeout_s: float = Field(120.0, gt=0, description="timeout of the first byte of a stream")
    stream_idle_timeout_s: float = Field(120.0, gt=0, description="timeout of each further byte of a stream")
    timeout_s: float = Field(1800.0, gt=0, description="timeout of a whole answer")
    resume_streams: bool = Field(
        False, description="whether another engine resumes a broken greedy stream from the text so far"
    )
    max_connections: int = Field(
        4096,
        ge=1,
        description="maximum open connections of a router process; fewer if it may open fewer than two files for each. "
        "Beyond it the longest idle one is closed",
    )
    receive_timeout_s: float = Field(
        60.0, gt=0, description="timeout of receiving a whole request, from its first byte to its last"
    )
    idle_timeout_s: float = Field(120.0, ge=1, description="time for which an idle connection is kept open")
    max_url_bytes: int = Field(8 * 2**10, ge=256, description="maximum size of path and query; longer ones get 414")
    max_header_bytes: int = Field(32 * 2**10, ge=1024, description="maximum size of all headers; larger ones get 431")
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="maximum size of a request body; larger ones get 413")
    max_total_body_bytes: int = Field(
        48 * 2**20,
        ge=1024,
        description="maximum size of all bodies over 64 KiB that a router holds at once, until their answers end; "
        "further ones wait. Raise it for many images",
    )
    max_json_depth: int = Field(128, ge=8, description="maximum nesting of a request body; deeper ones get 400")
    max_json_objects: int = Field(
        100_000,
        ge=1000,
        description="maximum number of objects and lists in a request body; it may have ten times as many values",
    )
    max_answer_bytes: int = Field(
        32 * 2**20,
        ge=2**16,
        description="maximum size of one event of a stream, and of a whole answer that is read before it is passed on",
    )
    paths: tuple[str, ...] = Field(
        PATHS,
        description="engine paths open to every client; `*` is a wildcard. Others need a key with the scope `admin`",
    )
    hosts: tuple[str, ...] = Field(
        (),
        description="further host names of the router, for browsers and for administration without keys; addresses and "
        "names without a dot are always its own",
    )
    local_admin: bool | None = Field(
        None,
        description="whether clients on the router's machine may administer it while no keys are configured; absent: "
        "yes, unless it is reached through a proxy of Ray on other addresses than loopback",
    )
    keys: KeysConfig = Field(default_factory=KeysConfig, description="API keys")
    admission: AdmissionConfig = Field(
        default_factory=AdmissionConfig, description="limits of concurrent and queued requests"
    )
    breaker: BreakerConfig = Field(default_factory=BreakerConfig, description="ejection of failing replicas")
    quarantine: QuarantineConfig = Field(
        default_factory=QuarantineConfig, description="quarantine of arms with lost drafters"
    )
    allow_engine_pinning: bool = Field(True, description="whether the header x-draftpick-arm may pin the engine")
    num_replicas: int = Field(1, ge=1, description="number of router replicas")
    seed: int | None = Field(None, description="seed of the policy's sampling; absent: from the operating system")
    records: RecordsConfig = Field(default_factory=RecordsConfig, description="recording of attempts")
    logs: LogsConfig = Field(default_factory=LogsConfig, description="format and content of logs")
    tracing: TracingConfig = Field(default_factory=TracingConfig, description="tracing of requests with OpenTelemetry")
    leases: LeasesConfig = Field(
        default_factory=LeasesConfig, description="decisions for requests that other gateways send"
    )
    epp: EppConfig = Field(default_factory=EppConfig, description="the endpoint picker for gateways, `draftpick epp`")
    deployment_options: dict[str, Any] = Field(
        default_factory=dict, description="further options of the router's Serve deployment"
    )


class LiveExplorationConfig(Model):
    """Exploration settings that a running router accepts."""

    rate: float = Field(ge=0, le=1, description="replaces `router.exploration.rate`")


class LiveConfig(Model):
    """Settings that a running router accepts without a restart, as Serve's `user_config`; absent ones do not change."""

    policy: str | None = Field(None, min_length=1, description="replaces `router.policy`")
    exploration: LiveExplorationConfig | None = Field(None, description="exploration settings")
    admission: AdmissionConfig | None = Field(
        None, description="replaces `router.admission`; absent fields get their defaults"
    )

    @model_validator(mode="before")
    @classmethod
    def _former_fields(cls, data: Any) -> Any:
        return rename_former(data, LIVE)


class DraftpickConfig(FleetConfig):
    """One YAML file: target, engines, router."""

    router: RouterConfig = Field(description="routing of requests")

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
            if engine is not None and engine not in self.names and engine not in self.arms:
                raise ValueError(
                    f"{field} names {engine!r}, which is not an engine "
                    f"({did_you_mean(engine, self.names)}engines: {', '.join(self.names)})"
                )
        return self

    @property
    def baseline(self) -> str:
        """The arm with the least risk under unknown load: one without a drafter."""
        plain = (e.name for e in self.engines if e.drafts is False)
        return default_arm(self.router.load.baseline_engine or next(plain, self.router.default_engine), self.arms)


class ConfigProblems(ConfigError):
    """All errors of a configuration, one line each: path, problem, fix."""

    def __init__(self, source: str, problems: list[str]) -> None:
        super().__init__(source, f"{len(problems)} problem{'s' if len(problems) != 1 else ''} found")
        self.problems = problems

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}\n" + "\n".join(f"  {line}" for line in self.problems)


def load_config(source: str | Path | dict[str, Any]) -> DraftpickConfig:
    """Load a YAML file or a dict. Raises `ConfigError` with the path of each invalid field."""
    if isinstance(source, dict):
        return _validate("configuration", source)
    path = Path(source)
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(str(path), f"is not readable: {error.strerror}", "name an existing YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), "is not valid YAML: it is not UTF-8") from error
    except yaml.YAMLError as error:
        # The lines around the error may contain a secret: show only its position and type.
        raise ConfigError(str(path), f"is not valid YAML{_place(error)}") from None
    if not isinstance(data, dict):
        raise ConfigError(str(path), "is not a mapping", "write `target`, `engines` and `router`")
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
    """Suggest the closest field name for an unknown one, and list all names at that level."""
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
