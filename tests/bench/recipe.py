"""A Dockerfile executed step by step without a container engine: stages are folders, RUN runs in them (chroot).

It knows what ours say, and refuses anything else.
"""

import fnmatch
import json
import os
import shutil
import string
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.bench.roots import (
    DEVICES,
    NAMES_OF_HOSTS,
    chrooted,
    debian,
    do,
    loopback,
    mounted,
    mounts_of,
    output,
    pip_settings,
    stop,
)
from tests.deploy.test_assets import instructions

WORDS = frozenset({"ARG", "CMD", "COPY", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "USER", "WORKDIR"})
"""Instructions that are known here."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PATIENCE_S, _EVERY_S = 600.0, 3.0
_ASK = """
import json, sys, urllib.request
def send(path, body=None):
    asked = urllib.request.Request("http://127.0.0.1:8000" + path, body, {"content-type": "application/json"})
    return json.load(urllib.request.urlopen(asked, timeout=120))
model = send("/v1/models")["data"][0]["id"]
body = {"model": model, "messages": [{"role": "user", "content": "What is 12 * 7?"}], "max_tokens": 24}
sys.exit(not send("/v1/chat/completions", json.dumps(body).encode())["choices"][0]["message"]["content"])
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction."""

    word: str
    rest: str


@dataclass(slots=True)
class Stage:
    """A root that is being made, and how commands run in it. `user`: `uid:gid`. `arguments`: of this stage's ARG."""

    root: Path
    environment: dict[str, str]
    folder: str = "/"
    user: str = "0:0"
    arguments: dict[str, str] = field(default_factory=dict)

    def inside(self, path: str) -> Path:
        """Where a path of the recipe is, from outside; a relative one begins at its folder."""
        return self.root / os.path.join(self.folder, path).lstrip("/")


class Recipe:
    """The instructions of a Dockerfile, and what has been made of them so far, in `scratch`."""

    def __init__(self, name: str, context: Path, scratch: Path) -> None:
        self.steps = [Step(*found) for found in instructions(name)]
        self.executed = 0
        self._scratch, self._context = scratch, scratch / "context"
        self._pip = pip_settings()
        self._named: dict[str, Stage] = {}
        self._stages: list[Stage] = []
        self._bases: dict[str, str] = {}
        self._command: list[str] = []
        self._health: list[str] = []
        copy_context(context, self._context)

    @property
    def stage(self) -> Stage:
        """The one that is being made, or was made last."""
        return self._stages[-1]

    def execute(self, step: Step) -> None:
        """Do one instruction. Raises ValueError for one that is not known here, CalledProcessError where it fails."""
        if step.word not in WORDS:
            raise ValueError(f"{step.word}: not known here ({', '.join(sorted(WORDS))})")
        getattr(self, f"_{step.word.lower()}")(step.rest)
        self.executed += 1

    def size_mb(self) -> float:
        """What the last stage weighs, in 10^6 bytes."""
        return float(output("du", "-s", "--block-size=1000000", str(self.stage.root)).split()[0])

    def differs(self) -> list[str]:
        """In what this is no `docker build` and no `docker run`."""
        return [
            *(f"{made} stands in the place of {image}" for image, made in self._bases.items()),
            "pip and apt take packages from where this machine is configured to",
            "no image and no layers are written: a stage is a folder, and COPY --from copies between folders",
            "it runs read-only, as its user, in a network that has a loopback and nothing else; there is no init, "
            "no limit of memory, no seccomp",
        ]

    # --- instructions ---

    def _from(self, rest: str) -> None:
        image, *named = rest.split()
        root = self._scratch / f"stage-{len(self._stages)}"
        if image in self._named:
            before = self._named[image]
            do("cp", "-a", "--reflink=auto", str(before.root), str(root))
            made = replace(before, root=root, environment=dict(before.environment), arguments={})
        else:
            self._bases[image] = debian(root)
            made = Stage(root, {"PATH": _PATH, "LANG": "C.UTF-8"})
        self._stages.append(made)
        if named:
            self._named[named[1]] = made

    def _env(self, rest: str) -> None:
        for name, value in (part.split("=", 1) for part in rest.split()):
            self.stage.environment[name] = string.Template(value).substitute(self.stage.environment)

    def _arg(self, rest: str) -> None:
        """What pip of this machine is configured with is given as `--build-arg`."""
        name, _, default = rest.partition("=")
        self.stage.arguments[name] = self._pip.get(name, default)

    def _workdir(self, rest: str) -> None:
        self.stage.folder = os.path.join(self.stage.folder, rest)
        self.stage.inside(".").mkdir(parents=True, exist_ok=True)

    def _user(self, rest: str) -> None:
        self.stage.user = rest

    def _run(self, rest: str) -> None:
        stage, mounts = self.stage, [*DEVICES, NAMES_OF_HOSTS, *mounts_of(self._pip)]
        while rest.startswith("--"):
            flag, _, rest = rest.partition(" ")
            prefix, _, target = flag.partition("target=")
            if prefix != "--mount=type=bind,":
                raise ValueError(f"RUN {flag}: not known here")
            mounts.append(("--bind", "-o", "ro", str(self._context), target))
        environment = {**self._pip, **stage.arguments, **stage.environment}
        with mounted(stage.root, mounts):
            do(*chrooted(stage.root, stage.user, stage.folder, environment), "/bin/sh", "-c", rest)

    def _copy(self, rest: str) -> None:
        *sources, target = rest.split()
        origin = self._context
        if sources[0].startswith("--from="):
            origin = self._named[sources.pop(0).removeprefix("--from=")].root
        to = self.stage.inside(target)
        for source in (origin / one.lstrip("/") for one in sources):
            if source.is_dir():
                to.mkdir(parents=True, exist_ok=True)
                do("cp", "-a", "--reflink=auto", f"{source}/.", str(to))
            else:
                do("cp", "-a", str(source), str(to))

    def _cmd(self, rest: str) -> None:
        self._command = json.loads(rest)

    def _expose(self, rest: str) -> None:
        """A note to the reader; whether it holds, `answers` finds out."""

    def _healthcheck(self, rest: str) -> None:
        self._health = json.loads(rest.partition(" CMD ")[2])

    # --- what was made ---

    def answers(self, arguments: Sequence[str]) -> bool:
        """Whether the recipe's command, with these arguments more, becomes healthy and answers a request."""
        root, stage = self._scratch / "running", self.stage
        root.mkdir(exist_ok=True)
        with mounted(root, self._mounts()), loopback() as apart:
            inside = [*apart, *chrooted(root, stage.user, stage.folder, stage.environment)]
            process = subprocess.Popen([*inside, *self._command, *arguments])
            try:
                # Healthy is who listens; engines that load a model answer later.
                wanted = (self._health, ["python", "-c", _ASK])
                return all(_succeeds([*inside, *command], process) for command in wanted)
            finally:
                stop(process)

    def _mounts(self) -> list[tuple[str, ...]]:
        """As compose.yaml has them: the root read-only, the home folder and /tmp in memory."""
        hosts = self._scratch / "hosts"
        hosts.write_text(f"127.0.0.1 localhost {os.uname().nodename}\n")
        uid, gid = self.stage.user.split(":")
        return [
            ("--bind", "-o", "ro", str(self.stage.root), "/"),
            *DEVICES,
            ("-t", "tmpfs", "-o", "size=2g,mode=1777", "tmpfs", "/dev/shm"),
            ("-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/tmp"),
            ("-t", "tmpfs", "-o", f"uid={uid},gid={gid},mode=755", "tmpfs", "/home/draftpick"),
            ("--bind", str(hosts), "/etc/hosts"),
        ]


def _succeeds(command: Sequence[str], process: subprocess.Popen[bytes]) -> bool:
    """Whether a command succeeds at last, while `process` runs."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until and process.poll() is None:
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return True
        time.sleep(_EVERY_S)
    return False


def copy_context(root: Path, target: Path) -> None:
    """What `.dockerignore` lets through: it drops all, then names what it keeps, and what of that it drops again."""
    lines = [line for line in (root / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    kept = [line[1:] for line in lines if line.startswith("!")]
    dropped = [line.removeprefix("**/") for line in lines if not line.startswith("!") and line != "*"]

    def ignored(folder: str, names: list[str]) -> set[str]:
        inside = {name: str((Path(folder) / name).relative_to(root)) for name in names}
        return {n for n, path in inside.items() for d in dropped if fnmatch.fnmatch(path, d) or fnmatch.fnmatch(n, d)}

    target.mkdir()
    for name in kept:
        if (root / name).is_dir():
            shutil.copytree(root / name, target / name, ignore=ignored)
        else:
            shutil.copy2(root / name, target / name)
