"""A pointer: a small file that names the policy that serves. It is replaced whole: a reader sees the old or the new."""

from pathlib import Path

from draftpick.engines.atomic_write import atomic_write
from draftpick.router.errors import PolicyRejected
from draftpick.router.policies.baselines import NAMES

_MAX_BYTES = 4096


def write_pointer(pointer: Path, policy: str) -> None:
    """Let `pointer` name `policy`: a name, or a folder, which is relative to the pointer where it lies beside it."""
    if policy not in NAMES:
        folder = Path(policy).resolve()
        home = pointer.resolve().parent
        policy = str(folder.relative_to(home) if folder.is_relative_to(home) else folder)
    atomic_write(pointer, policy + "\n", mode=0o644, durable=True)


def read_pointer(name: str) -> str:
    """What `name` names: itself, or, when it is a file, the policy in it. Raises `PolicyRejected`."""
    path = Path(name)
    if name in NAMES or not path.is_file():
        return name
    try:
        with path.open() as file:
            inner = file.read(_MAX_BYTES).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyRejected(f"pointer {path} cannot be read: {error}") from error
    if not inner or "\n" in inner:
        raise PolicyRejected(f"pointer {path} must hold one line: the name or the folder of a policy")
    return inner if inner in NAMES else str(path.resolve().parent / inner)


class FileWatcher:
    """Tells when a file has been replaced or written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last_signature = self._signature()

    def changed(self) -> bool:
        """Whether it differs from what it was at the last call."""
        before, self._last_signature = self._last_signature, self._signature()
        return self._last_signature is not None and self._last_signature != before

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return (stat.st_ino, stat.st_mtime_ns, stat.st_size)
