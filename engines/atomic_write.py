"""Atomic writes of files and folders: built next to the destination, then renamed into place."""

import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def atomic_write(path: Path, data: bytes | str, *, mode: int | None = None, durable: bool = False) -> None:
    """Write a file; text as UTF-8. Arguments and errors are those of `atomic_path`."""
    with atomic_path(path, mode=mode, durable=durable) as scratch:
        scratch.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_path(path: Path, *, mode: int | None = None, durable: bool = False) -> Iterator[Path]:
    """Yield an empty file next to `path`; it replaces `path` on exit and is removed after an error.

    `mode`: permissions; None: those of the replaced file, else 0o666 less the umask. `durable`: wait until the data is
    on disk. Raises OSError; `FileNotFoundError` names the folder if that is missing.
    """
    if mode is None and path.exists():
        mode = stat.S_IMODE(path.stat().st_mode)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        os.close(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600))
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(path.parent)) from error
    try:
        yield scratch
        if mode is not None:
            scratch.chmod(mode)
        if durable:
            sync(scratch)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    if durable:
        sync(path.parent)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield an empty folder next to `path`; it becomes `path` on exit and is removed after an error.

    An existing folder is replaced; with `replace=False` it raises OSError. Missing parents are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as place:
        scratch, old = Path(place) / "new", Path(place) / "old"
        scratch.mkdir()
        yield scratch
        if replace and path.exists():
            os.replace(path, old)
        try:
            os.replace(scratch, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
