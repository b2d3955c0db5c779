"""Files and folders that are there whole or not at all: made beside their place, then renamed into it."""

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
    """An empty file beside `path`, to be written; at the end it replaces `path`, after an error it is removed.

    `mode`: its permissions; None: those of the file that it replaces, else what the umask leaves of 0o666. `durable`:
    wait until the disk has it. Raises OSError; `FileNotFoundError` names the folder where that is missing.
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
    """An empty folder beside `path`, to be filled; at the end it becomes `path`, after an error it is removed.

    A folder that is there already is replaced, or else OSError is raised. The folder above is made.
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
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
