"""Changes of a file, seen by its inode, time and size."""

from pathlib import Path


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
