"""The sections of the router's configuration, one model each."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from draftpick.engines.config import Model

Objective = Literal["latency", "throughput", "cost"]


OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput", "cost")


class LoadConfig(Model):
    """Load-aware routing."""

    enabled: bool = Field(True, description="whether decisions take the load of engines into account")
    objective: Objective = Field("throughput", description="default objective of routing; a key may set its own")
    report_interval_s: float = Field(0.5, gt=0, description="interval of polling the engines' load")
    stale_s: float = Field(
        5.0, gt=0, description="age of the last load report at which an engine is skipped while others report"
    )
    baseline_engine: str | None = Field(
        None, description="engine that serves while all loads are unknown; absent: the first engine without a drafter"
    )


class QuarantineConfig(Model):
    """Quarantine of arms whose acceptance has collapsed."""

    enabled: bool = Field(True, description="whether arms are quarantined")
    collapse_ratio: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="share of the arm's baseline gain, tau - 1, below which an answer counts as collapsed",
    )
    false_alarm_probability: float = Field(
        1e-6,
        gt=0,
        lt=0.1,
        description="probability of a run of collapsed answers below which the drafter counts as lost",
    )
    quarantine_s: float = Field(
        60.0, gt=0, description="initial duration of a quarantine; doubles with each failed probe"
    )
    max_quarantine_s: float = Field(900.0, gt=0, description="maximum duration of a quarantine")
    probes: int = Field(4, ge=1, description="consecutive collapsed probes after which an arm is quarantined again")


class AdmissionConfig(Model):
    """Limits of one router replica."""

    max_in_flight: int = Field(2048, ge=1, description="maximum concurrent requests")
    max_in_flight_per_replica: int = Field(1024, ge=1, description="maximum concurrent requests per engine replica")
    max_key_share: float = Field(
        0.8,
        gt=0,
        le=1,
        description="largest share of the slots that one of several API keys gets while no other key asks; less while "
        "others hold some, so that all find a free one; 1: no such limit",
    )
    max_queued: int = Field(1024, ge=0, description="maximum queued requests; beyond it the least important is shed")
    queue_timeout_s: float = Field(30.0, gt=0, description="timeout in the queue")
    retry_after_s: float = Field(1.0, gt=0, description="Retry-After of rejected requests")


class CorrectionConfig(Model):
    """Online correction of predicted times by measured ones."""

    enabled: bool = Field(True, description="whether measured times correct the policy's predictions")
    window: float = Field(40.0, ge=2, description="effective number of answers per engine and cluster in a correction")
    max_log_step: float = Field(
        0.7, gt=0, description="clipping of one answer's deviation from the running mean, in log units"
    )


class AutoscalingConfig(Model):
    """Joint scaling of engines with `deployment.autoscaling`."""

    max_accelerators: int | None = Field(
        None, ge=1, description="maximum accelerators (on CPUs: workers) of all engines together; absent: unlimited"
    )
    interval_s: float = Field(2.0, gt=0, description="interval of setting the engines' numbers of replicas")


class DriftConfig(Model):
    """Drift detection."""

    enabled: bool = Field(True, description="whether drift is monitored")
    reference: int = Field(30, ge=10, description="number of answers of an engine that form its baseline")
    page_hinkley_delta: float = Field(0.5, gt=0, description="tolerated shift of the mean, in standard deviations")
    page_hinkley_lambda: float = Field(12.0, gt=0, description="sum of deviations beyond it that signals a change")
    window: int = Field(120, ge=50, description="number of requests whose clusters are compared with the baseline")
    psi_threshold: float = Field(
        1.0, gt=0, description="population stability index above which the requests have changed"
    )


DEFAULT_EXPLORATION_RATE = 0.03


class ExplorationConfig(Model):
    """Exploration of engines other than the policy's choice."""

    rate: float | None = Field(
        None,
        ge=0,
        le=1,
        description="exploration rate: share of requests that may go to another engine than the policy's choice; among "
        f"near-ties if the policy predicts times, else uniform; 0: none, not even wide exploration; absent: "
        f"{DEFAULT_EXPLORATION_RATE} if the policy predicts times and these are corrected, else 0",
    )
    wide_rate: float = Field(
        0.3,
        ge=0,
        le=1,
        description="exploration rate while the level of an engine's times on this machine is not known; 0: never wide",
    )
    wide_cost: float = Field(
        0.05,
        ge=0,
        le=1,
        description="maximum expected slowdown of a request by wide exploration, as a share of its time",
    )
    wide_answers: int = Field(
        40,
        ge=1,
        description="answers of an engine after which its level counts as known; also ends wide exploration "
        "after this many answers for each engine, whichever engine gave them",
    )
    level_error: float = Field(
        0.05, gt=0, description="standard error of the mean log residual of an engine below which its level is known"
    )
    gamma: float = Field(
        100.0, gt=0, description="gamma of SquareCB: the greater, the less often slower engines are explored"
    )
    max_slowdown: float = Field(
        0.3, ge=0, description="engines predicted slower by more than this share get only the floor"
    )
    min_probability: float = Field(0.005, ge=0, le=0.1, description="minimum probability of every engine")
    max_in_flight: int | None = Field(
        None, ge=1, description="requests in flight at one router at which exploration stops; absent: never stops"
    )


API_KEY_VARIABLE = "DRAFTPICK_API_KEYS"


ADMIN_KEY_VARIABLE = "DRAFTPICK_ADMIN_KEYS"
"""Environment variables with plain-text keys, comma-separated."""


class KeysConfig(Model):
    """API keys. Without a file and without keys in the environment, no key is required."""

    file: Path | None = Field(None, description="YAML list of keys: name, sha256, scopes, limits, expires")
    environment: bool = Field(True, description=f"also accept the keys in {API_KEY_VARIABLE} and {ADMIN_KEY_VARIABLE}")


class LogsConfig(Model):
    """Logging. On Ray Serve its own LoggingConfig applies as well."""

    format: Literal["text", "json"] = Field("text", description="one line of text, or one JSON object, per message")
    access_log: bool = Field(False, description="whether every finished request is logged")


class SafeModeConfig(Model):
    """Safe mode: the best single engine serves while routing is measured slower than it."""

    enabled: bool = Field(True, description="whether routing that loses time gives way to the best single engine")
    window: int = Field(200, ge=40, description="number of latest requests over which routing is compared")
    probe_rate: float = Field(
        0.1, gt=0, le=0.5, description="share of requests that the policy routes in safe mode, to see whether it gains"
    )


class OnlineConfig(Model):
    """Online learning and drift detection."""

    dir: Path | None = Field(
        None,
        description="folder of events.jsonl and of state shared between routers; absent: `online` below `records.dir`",
    )
    correction: CorrectionConfig = Field(default_factory=CorrectionConfig, description="correction of predicted times")
    drift: DriftConfig = Field(default_factory=DriftConfig, description="detection of changed engines or requests")
    safe_mode: SafeModeConfig = Field(
        default_factory=SafeModeConfig, description="protection from routing that loses time"
    )


class PrefixCacheConfig(Model):
    """Preference for replicas that have cached a prompt's prefix."""

    enabled: bool = Field(True, description="whether replicas that have read a prompt's prefix are preferred")
    shared_by_keys: bool = Field(
        False,
        description="whether what one API key has sent attracts requests of others, who could learn of it; else each "
        "key has its own prefixes",
    )
    max_blocks: int = Field(32_768, ge=1, description="number of 1,024-byte blocks of requests kept, as hashes")
    max_bytes: int = Field(65_536, ge=1024, description="maximum compared length of a request")


class SessionsConfig(Model):
    """What a router remembers of sessions, which clients name."""

    max_sessions: int = Field(16_384, ge=0, description="number of sessions kept; 0: none")
    ttl_s: float = Field(3600.0, gt=0, description="time after which a session without a request is forgotten")


class ShadowConfig(Model):
    """Replay of finished requests on all other engines. Each costs every other engine one request."""

    sample_rate: float = Field(0.0, ge=0, le=1, description="share of finished requests to replay")
    max_in_flight: int = Field(4, ge=1, description="client requests in flight at the router at which shadows pause")


class LeasesConfig(Model):
    """Decisions for requests that somebody else sends: `POST /v1/route` and `POST /v1/outcomes`, for admins."""

    enabled: bool = Field(False, description="whether the router gives leases")
    lease_s: float = Field(
        600.0, gt=0, description="time for which a lease holds its place; answers that take longer teach nothing"
    )
    report_host: str = Field(
        "127.0.0.1",
        description="address on which the router takes engines' reports, as the engines reach it; `node`: that of its "
        "node. It does if DRAFTPICK_REPORT_SECRET or DRAFTPICK_REPORT_SECRET_FILE is set, here and at the engines",
    )
    report_port: int = Field(0, ge=0, le=65535, description="port for these reports; 0: any free one")


class EppConfig(Model):
    """The endpoint picker for gateways, `draftpick epp`."""

    deadline_s: float = Field(
        0.15,
        gt=0,
        description="time for a decision, from the last byte of a request; after it the gateway chooses by itself. "
        "Less than the gateway's own timeout (Envoy's `message_timeout`, 0.2 s by default)",
    )
    certificate_file: Path | None = Field(
        None, description="PEM file of the picker's certificate, with those that signed it; absent: no TLS"
    )
    key_file: Path | None = Field(None, description="PEM file of its private key")

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("`certificate_file` and `key_file` need each other; set both, or none for no TLS")
        return self


class TracingConfig(Model):
    """Tracing of requests, and where traces are sent."""

    sample_rate: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of traced requests without a sampling decision of the client; 0: no tracing",
    )
    endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="OTLP/HTTP endpoint of a collector, `http://collector:4318`; absent: OTEL_EXPORTER_OTLP_ENDPOINT",
    )
