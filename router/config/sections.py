"""The sections of the router's configuration, one model each."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from draftpick.engines.config import Model

Objective = Literal["latency", "throughput", "cost"]


OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput", "cost")


class LoadConfig(Model):
    """How the load of engines counts."""

    enabled: bool = Field(True, description="whether decisions take the load of engines into account")
    objective: Objective = Field("throughput", description="what a request is sent by, unless its key says otherwise")
    report_interval_s: float = Field(0.5, gt=0, description="how often engines are asked what they do")
    stale_s: float = Field(
        5.0, gt=0, description="an engine that reported and has not for so long is left alone while others report"
    )
    baseline_engine: str | None = Field(
        None, description="who serves while no load is known; absent: the first engine without a drafter"
    )


class QuarantineConfig(Model):
    """When an arm whose acceptance collapses is left alone."""

    enabled: bool = Field(True, description="whether arms are quarantined at all")
    collapse_ratio: float = Field(
        0.2, gt=0, lt=1, description="an answer counts as collapsed below this share of the arm's usual gain, tau - 1"
    )
    false_alarm_probability: float = Field(
        1e-6, gt=0, lt=0.1, description="a run of collapsed answers this unlikely, by the arm's own history, is a loss"
    )
    quarantine_s: float = Field(60.0, gt=0, description="first time without requests; doubles with each failed probe")
    max_quarantine_s: float = Field(900.0, gt=0, description="longest time without requests")
    probes: int = Field(4, ge=1, description="collapsed answers in a row that send a probed arm back")


class AdmissionConfig(Model):
    """Bounds of one replica of the router."""

    max_in_flight: int = Field(2048, ge=1, description="requests that are answered at once")
    max_in_flight_per_replica: int = Field(1024, ge=1, description="requests at once on one replica of an engine")
    max_queued: int = Field(1024, ge=0, description="requests that may wait; beyond, the cheapest to lose is refused")
    queue_timeout_s: float = Field(30.0, gt=0, description="longest wait in the queue")
    retry_after_s: float = Field(1.0, gt=0, description="what refused clients are told to wait")


class CorrectionConfig(Model):
    """How quickly a running router follows what it measures."""

    enabled: bool = Field(False, description="whether measured times correct those that the policy predicts")
    window: float = Field(40.0, ge=2, description="answers of one engine on one kind of request that count")
    max_log_step: float = Field(
        0.7, gt=0, description="farthest that one answer counts from the mean so far, as a logarithm"
    )


class AutoscalingConfig(Model):
    """How engines with `deployment.autoscaling` are scaled together."""

    max_accelerators: int | None = Field(
        None, ge=1, description="accelerators (workers, on CPUs) that all engines may take together; absent: any number"
    )
    interval_s: float = Field(2.0, gt=0, description="how often engines are told how many replicas are wanted")


class DriftConfig(Model):
    """When a change is taken for real."""

    enabled: bool = Field(True, description="whether drift is watched at all")
    reference: int = Field(30, ge=10, description="answers of an engine that tell what is usual for it")
    page_hinkley_delta: float = Field(0.5, gt=0, description="deviations that the mean may wander unnoticed")
    page_hinkley_lambda: float = Field(12.0, gt=0, description="summed deviations beyond that which are a change")
    window: int = Field(120, ge=50, description="requests whose kinds are compared with the usual ones")
    psi_threshold: float = Field(1.0, gt=0, description="population stability index above which the kinds have changed")


class ExplorationConfig(Model):
    """Which requests try other engines than the policy's choice."""

    rate: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of requests that may go to another engine than the policy's: among near-ties, where it "
        "predicts times, else among all alike",
    )
    gamma: float = Field(100.0, gt=0, description="the greater, the less an engine is tried that seems slower")
    max_slowdown: float = Field(
        0.3, ge=0, description="engines that seem slower by more than this share get the floor alone"
    )
    min_probability: float = Field(
        0.005, ge=0, le=0.1, description="probability that every engine keeps, so that all are seen"
    )
    max_in_flight: int | None = Field(
        None, ge=1, description="with as many requests in flight at one router nothing is explored; absent: always"
    )


API_KEY_VARIABLE = "DRAFTPICK_API_KEYS"


ADMIN_KEY_VARIABLE = "DRAFTPICK_ADMIN_KEYS"
"""Environment variables that hold keys in plain, with commas between them."""


class KeysConfig(Model):
    """Which keys are taken. Without a file and without keys in the environment, nobody is asked for one."""

    file: Path | None = Field(None, description="YAML list of keys: name, sha256, scopes, limits, expires")
    environment: bool = Field(True, description=f"also take the keys in {API_KEY_VARIABLE} and {ADMIN_KEY_VARIABLE}")


class LogsConfig(Model):
    """What is logged. On Ray Serve its own LoggingConfig may say more."""

    format: Literal["text", "json"] = Field("text", description="a line of text, or a JSON object on a line")
    access_log: bool = Field(False, description="whether every finished request leaves a line")


class OnlineConfig(Model):
    """What a running router learns by itself."""

    dir: Path | None = Field(
        None,
        description="folder of events.jsonl, and of what routers tell each other; absent: `online` below `records.dir`",
    )
    correction: CorrectionConfig = Field(default_factory=CorrectionConfig, description="of the times that it predicts")
    drift: DriftConfig = Field(default_factory=DriftConfig, description="when engines or requests have changed")


class PrefixCacheConfig(Model):
    """Whether a conversation prefers the replica that has read it."""

    enabled: bool = Field(True, description="whether engines that have read a prompt's beginning are preferred")
    max_blocks: int = Field(
        32_768, ge=1, description="blocks of 1,024 bytes of requests that are remembered, as hashes"
    )
    max_bytes: int = Field(65_536, ge=1024, description="how much of a request is compared")


class ShadowConfig(Model):
    """How many finished requests are asked again. Each costs every other engine one request."""

    sample_rate: float = Field(0.0, ge=0, le=1, description="share of the finished requests")
    max_in_flight: int = Field(4, ge=1, description="none while the router holds as many requests of clients")


class TracingConfig(Model):
    """Which requests are traced, and where to."""

    sample_rate: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the requests that are traced where their clients say nothing; 0: none at all",
    )
    endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="where a collector takes traces as OTLP over HTTP, `http://collector:4318`; absent: "
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    )
