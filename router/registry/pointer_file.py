"""A pointer: a small file that names the policy in service. It is replaced atomically."""

from pathlib import Path

from draftpick.engines.atomic_write import atomic_write
from draftpick.router.errors import PolicyRejected
from draftpick.router.policies.baselines import NAMES

_MAX_BYTES = 4096


def write_pointer(pointer: Path, policy: str) -> None:
    """Write `policy` to `pointer`: a name, or a folder, made relative if it is next to the pointer."""
    if policy not in NAMES:
        folder = Path(policy).resolve()
        home = pointer.resolve().parent
        policy = str(folder.relative_to(home) if folder.is_relative_to(home) else folder)
    atomic_write(pointer, policy + "\n", mode=0o644, durable=True)


def read_pointer(name: str) -> str:
    """Resolve `name`: itself, or the policy named in it if it is a file. Raises `PolicyRejected`."""
    path = Path(name)
    if name in NAMES or not path.is_file():
        return name
    try:
        with path.open() as file:
            inner = file.read(_MAX_BYTES).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyRejected(f"pointer {path} is not readable: {error}") from error
    if not inner or "\n" in inner:
        raise PolicyRejected(f"pointer {path} must contain one line: the name or the folder of a policy")
    return inner if inner in NAMES else str(path.resolve().parent / inner)


class FileWatcher:
    """Detects that a file has been replaced or written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last_signature = self._signature()

    def changed(self) -> bool:
        """True if the file has changed since the last call."""
        before, self._last_signature = self._last_signature, self._signature()
        return self._last_signature is not None and self._last_signature != before

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return (stat.st_ino, stat.st_mtime_ns, stat.st_size)
