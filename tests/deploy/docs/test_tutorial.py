"""docs/tutorial.md followed to the letter, with real engines of `vllm serve` on CPUs; only ports and counts differ."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from draftpick.deploy.config import resolve
from draftpick.deploy.launch.ports import free_port
from draftpick.router import records
from tests.deploy.docs.code_blocks import blocks

ROOT = Path(__file__).parents[3]
TUTORIAL = ROOT / "docs" / "tutorial.md"
TEXTS = {block.name: block.text for block in blocks(TUTORIAL) if block.name is not None}
PROMPTS, TOKENS = 40, 8  # fewer prompts would give no verdict
DARK = " GET /draftpick/load is 404"
PLAIN = "plain with its load"
"""The block of step 9, which starts `plain` with one option more: a second start of a model takes long."""


class Reader:
    """Somebody who follows the tutorial without a GPU, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.followed = folder, set[str]()
        self._ports = {port: str(free_port()) for port in ("8000", "8001", "8002")}
        binaries = Path(sys.executable).parent
        self._env = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "COLUMNS": "240", "NO_COLOR": "1"}

    def url(self, port: str) -> str:
        """Where that is which the tutorial has at this port."""
        return f"http://127.0.0.1:{self._ports[port]}"

    def text(self, name: str) -> str:
        """A block, with ports that are free and fewer prompts."""
        self.followed.add(name)
        text = re.sub("|".join(self._ports), lambda found: self._ports[found[0]], TEXTS[name])
        return text.replace("-n 60", f"-n {PROMPTS} --max-tokens {TOKENS}")

    def write(self, name: str) -> Path:
        """Save a block as the file that it is called."""
        path = self.folder / name
        path.write_text(self.text(name))
        return path

    def type(self, name: str) -> str:
        """What a block prints."""
        done = subprocess.run(["bash", "-ec", self.text(name)], **self._as_this, capture_output=True, timeout=400)
        assert done.returncode == 0, f"{name}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return str(done.stdout)

    def python(self, name: str) -> str:
        """What a program prints."""
        command = [sys.executable, str(self.write(name))]
        done = subprocess.run(command, **self._as_this, capture_output=True, timeout=180)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    @contextmanager
    def terminal(self, name: str) -> Iterator[None]:
        """A block that goes on in a terminal of its own, until it is closed."""
        script = f"{self.text('without a GPU')}\n{self.text(name)}"
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                ["bash", "-c", script], **self._as_this, stdout=log, stderr=log, start_new_session=True
            )
            try:
                yield
                assert process.poll() is None, self.log(name)
            finally:
                _close(process)

    def log(self, name: str) -> str:
        """The end of what a terminal shows."""
        return (self.folder / f"{name}.log").read_text()[-3000:]

    def wait(self, url: str, *names: str) -> None:
        """Until this page is there; `names`: the terminals that have to do with it."""
        assert until(lambda: _answers(url), 500), "\n".join(self.log(name) for name in names)

    @property
    def _as_this(self) -> dict[str, Any]:
        return {"cwd": self.folder, "env": self._env, "text": True}


def _close(process: "subprocess.Popen[str]") -> None:
    """End a terminal and all that runs in it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        if not until(lambda: _closed(process), 20):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def _closed(process: "subprocess.Popen[str]") -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(0.2)
    return holds


def squeezed(text: str) -> str:
    """Without a table's lines and gaps."""
    return re.sub(r"[\s│]+", " ", text)


def header(answer: str, name: str) -> str:
    """Of an answer as `curl -i` shows it."""
    (value,) = re.findall(rf"^{name}: (.*?)\s*$", answer, re.MULTILINE | re.IGNORECASE)
    return str(value)


def arm_of(answer: str) -> str:
    assert answer.startswith("HTTP/1.1 200"), answer
    return header(answer, "x-draftpick-arm")


def ask(reader: Reader, router: str) -> None:
    """Steps 4 and 5."""
    arms: set[str] = set()
    for _ in range(20):
        answer = reader.type("curl")
        arms.add(arm_of(answer))
        assert header(answer, "x-draftpick-policy") == "uniform"
        assert header(answer, "x-draftpick-request-id")
        if len(arms) == 2:
            break
    assert arms == {"plain", "suffix"}
    lines = reader.python("ask.py").splitlines()  # sampled answers may have lines of their own
    assert lines[0].split()[0] in arms
    assert "suffix was asked for" in lines
    assert _answers(f"{router}/ui/")
    said = squeezed(reader.type("doctor"))
    assert (f" suffix{DARK}" in said, f"plain, suffix{DARK}" in said) == (True, False)


def train(reader: Reader) -> None:
    """Steps 6 and 7."""
    said = reader.type("train")
    assert f"{2 * PROMPTS} measurements (0 failed) in runs/live" in said
    assert f"requests {PROMPTS}; arms ['plain', 'suffix']" in said
    assert re.match(r"(not )?worth it: |cannot tell: ", reader.type("headroom"))
    assert (reader.folder / "runs/report.html").is_file()


def use(reader: Reader, router: str) -> None:
    """Step 8, after the restart."""
    assert "policy tau_cost:" in reader.type("explain")
    assert header(reader.type("curl"), "x-draftpick-policy").startswith("tau_cost:")
    assert httpx.get(f"{router}/ready").json()["policy_rejected"] is None
    assert "plain" in reader.type("records")
    kept = list(records.read(reader.folder / "records"))
    assert len(kept) > 2 * PROMPTS
    assert all("12 * 7" not in path.read_text() for path in (reader.folder / "records").glob("*.jsonl"))


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


def test_the_file_has_ten_lines_and_is_valid(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    path = reader.write("engines.yaml")
    assert len(path.read_text().splitlines()) == 10
    assert "valid: target my-model, engines plain, suffix" in reader.type("check")
    monkeypatch.chdir(reader.folder)
    fleet = resolve(path)
    assert [(engine.kind, engine.drafts) for engine in fleet.engines] == [("url", None), ("url", True)]


def test_the_file_says_what_the_engines_are_started_with() -> None:
    suffix = yaml.safe_load(TEXTS["engines.yaml"])["engines"][1]["drafter"]
    (given,) = re.findall(r"--speculative-config '(.*)'", TEXTS["suffix"])
    assert yaml.safe_load(given) == suffix
    assert TEXTS["plain with its load"].startswith(TEXTS["plain"].rstrip("\n"))


@pytest.mark.vllm
@pytest.mark.timeout(1500)
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.skipif(psutil.virtual_memory().total < 8 * 2**30, reason="two engines need 8 GiB of memory")
def test_every_step_does_what_the_tutorial_says(reader: Reader) -> None:
    router, engines = reader.url("8000"), {"plain": reader.url("8001"), "suffix": reader.url("8002")}
    reader.write("engines.yaml")
    with ExitStack() as stack, ExitStack() as plain, ExitStack() as routing:
        stack.enter_context(reader.terminal("suffix"))
        plain.enter_context(reader.terminal(PLAIN))
        for name, url in zip((PLAIN, "suffix"), engines.values(), strict=True):
            reader.wait(f"{url}/health", name)
        assert httpx.get(f"{engines['plain']}/draftpick/load").json()["running"] == 0
        reader.type("check")
        routing.enter_context(reader.terminal("router"))
        reader.wait(f"{router}/ready", "router")
        ask(reader, router)
        train(reader)
        assert " is active" in reader.type("activate")
        routing.close()
        routing.enter_context(reader.terminal("router"))
        reader.wait(f"{router}/ready", "router")
        use(reader, router)
        plain.close()
        assert arm_of(reader.type("curl")) == "suffix"
    assert reader.followed | {"plain"} == set(TEXTS)
