"""Identity of an engine and its machine, the key of a profile. Served at `GET /draftpick/engine`."""

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
    """`build`: hash of target, drafter, arguments and versions; `machine`: hardware, as one word.

    `max_running`: maximum concurrent requests; None: unknown. `drafters`: of a pool, without `none`.
    """

    build: str
    machine: str
    max_running: int | None = None
    drafters: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: bytes) -> "EngineIdentity | None":
        """Parse an identity; None for anything else, since other services may listen at an engine's address."""
        try:
            fields = json.loads(data)
            drafters = tuple(map(str, fields.get("drafters", ())))
            made = cls(str(fields["build"]), str(fields["machine"]), fields.get("max_running"), drafters)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        most = made.max_running
        words = all(re.fullmatch(r"[\w.-]+", word) for word in (made.build, made.machine, *made.drafters))
        return made if words and (most is None or (type(most) is int and most >= 1)) else None


def digest(what: Any) -> str:
    """Return a hash of plain values, equal in every process."""
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def machine_name(accelerators: Sequence[str] = ()) -> str:
    """Return accelerators, processor, and usable threads of this process, as one word."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":", 1)[1] for line in lines if line.startswith("model name")), model)
    threads = os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0)))
    return _word(*accelerators, model, f"{threads} of {os.cpu_count()} threads")


def described(model: str) -> str:
    """Describe a model for an identity: its shape if it is in a folder, regardless of the path; else its name.

    Models of one shape take the same time, so drafters with different weights share a profile.
    """
    config = Path(model) / "config.json"
    return digest(config.read_text()) if config.is_file() else model


def _word(*parts: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(parts).lower()).strip("-.")
