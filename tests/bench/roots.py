"""Clean roots of a file system, and how commands run in them: debootstrap, mounts, chroot, a network of their own.

To be used as root of the machine, in mount and process namespaces that end with the program.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

RELEASE = "bookworm"
_PYTHON = "python3,python3-venv,python3-dev,python-is-python3,ca-certificates,netbase,tzdata"
"""What of Debian's own does what Python's image does: an interpreter called `python`, its headers, roots of trust."""
_OF_THE_RECIPE = frozenset({"disable-pip-version-check", "no-cache-dir"})
_PLACES = (
    *("apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"),
    "Created-By: Packages",
)


def debian(root: Path) -> str:
    """Make a clean Debian with its own Python; returns what it is. Raises CalledProcessError."""
    places = list(dict.fromkeys(tuple(line.split()) for line in output(*_PLACES).splitlines()))
    ours = [place for place in places if place[1].startswith(RELEASE)]
    if not ours:
        raise SystemExit(f"error: apt of this machine knows no place of Debian {RELEASE}")
    mirror = next(uri for uri, suite, _ in ours if suite == RELEASE)
    do("debootstrap", "--variant=minbase", f"--include={_PYTHON}", RELEASE, str(root), mirror)
    (root / "etc/apt/sources.list").write_text("".join(f"deb {' '.join(place)}\n" for place in ours))
    (root / "etc/hosts").touch()
    version = output("chroot", str(root), "python", "--version").strip()
    return f"Debian {(root / 'etc/debian_version').read_text().strip()} (debootstrap, minbase) with its own {version}"


def pip_settings() -> dict[str, str]:
    """Where pip of this machine takes packages from, as variables of the environment."""
    found: dict[str, str] = {}
    for line in output(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        scope, _, setting = name.rpartition(".")
        variable = f"PIP_{setting.upper().replace('-', '_')}"
        if setting not in _OF_THE_RECIPE and (scope == ":env:" or variable not in found):
            found[variable] = " ".join(str(ast.literal_eval(value)).split())
    return found | {name: os.environ[name] for name in ("http_proxy", "https_proxy", "no_proxy") if name in os.environ}


DEVICES = (("-t", "proc", "proc", "/proc"), ("--rbind", "/dev", "/dev"), ("--rbind", "/sys", "/sys"))
NAMES_OF_HOSTS = ("--bind", "-o", "ro", "/etc/resolv.conf", "/etc/resolv.conf")


def mounts_of(settings: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """What pip's settings name on this machine's disk, to be mounted where it is, for reading."""
    words = {word for value in settings.values() for word in value.split()}
    # The pages of an index on the disk name files that lie beside them.
    paths = {Path(word.removeprefix("file://")).parent if word.startswith("file://") else Path(word) for word in words}
    for path in sorted(paths):
        if path.is_absolute() and path.exists():
            yield "--bind", "-o", "ro", str(path), str(path)


@contextmanager
def mounted(root: Path, mounts: Sequence[tuple[str, ...]]) -> Iterator[None]:
    """Mounts below `root`: arguments of `mount`, the last one the place inside."""
    with ExitStack() as stack:
        for *how, place in mounts:
            target = root / place.lstrip("/")
            if not target.exists() and "--bind" in how and Path(how[-1]).is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
            elif not target.exists():
                target.mkdir(parents=True)
            do("mount", *how, str(target))
            stack.callback(do, "umount", "-l", str(target))
        yield


@contextmanager
def loopback() -> Iterator[list[str]]:
    """How to run a command in a network that has a loopback and nothing else."""
    script = "ip link set lo up && echo up && exec sleep infinity"
    holder = subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        if holder.stdout.readline().strip() != "up":
            raise RuntimeError("no network of its own")
        yield ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
    finally:
        stop(holder)


def chrooted(root: Path, user: str, folder: str, environment: Mapping[str, str]) -> list[str]:
    """How to run a command in `root`, as `user` (`uid:gid`), in `folder`, with no other environment."""
    uid, gid = user.split(":")
    pairs = [f"{name}={value}" for name, value in {"HOME": _home(root, uid), **environment}.items()]
    return ["chroot", f"--userspec={user}", f"--groups={gid}", str(root), "env", "-i", f"--chdir={folder}", *pairs]


def _home(root: Path, uid: str) -> str:
    """As container engines find it: in the image's own table of users."""
    rows = [line.split(":") for line in (root / "etc/passwd").read_text().splitlines()]
    return next((row[5] for row in rows if row[2] == uid), "/")


def stop(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Ask it to end, and end it where it does not."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def do(*command: str) -> None:
    """Run a command. Raises CalledProcessError."""
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def output(*command: str) -> str:
    """What a command prints. Raises CalledProcessError."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
