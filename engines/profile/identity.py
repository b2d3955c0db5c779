"""Which engine this is, and on which machine: what a profile is kept under. Shown at `GET /draftpick/engine`."""

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

PATH = "/draftpick/engine"


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """`build`: a hash of target, drafter, arguments and versions; `machine`: where it runs, as one word.

    `max_running`: requests that run at once; None: unknown.
    """

    build: str
    machine: str
    max_running: int | None = None

    def as_json(self) -> dict[str, Any]:
        """For the page; `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: bytes) -> "EngineIdentity | None":
        """What a page shows; None where that is no identity: other things may listen at an engine's address."""
        try:
            fields = json.loads(data)
            made = cls(str(fields["build"]), str(fields["machine"]), fields.get("max_running"))
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        most = made.max_running
        words = all(re.fullmatch(r"[\w.-]+", word) for word in (made.build, made.machine))
        return made if words and (most is None or (type(most) is int and most >= 1)) else None


def digest(what: Any) -> str:
    """A hash of plain values, the same in every process."""
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def machine_name(accelerators: Sequence[str] = ()) -> str:
    """Accelerators, processor, and the threads that this process may use, as one word."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":", 1)[1] for line in lines if line.startswith("model name")), model)
    threads = os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0)))
    return _word(*accelerators, model, f"{threads} of {os.cpu_count()} threads")


def described(model: str) -> str:
    """A model as an identity holds it: the shape of one in a folder, wherever the folder lies; else its name.

    Models of one shape take the same time, so drafters that differ in their weights alone share a profile.
    """
    config = Path(model) / "config.json"
    return digest(config.read_text()) if config.is_file() else model


def _word(*parts: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(parts).lower()).strip("-.")
