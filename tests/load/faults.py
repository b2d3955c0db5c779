"""What can go wrong, done to a running fleet: a fault is done, lasts, is undone, and is over when all is well again."""

import asyncio
import contextlib
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from ray import serve

from draftpick.deploy.app import APP_NAME, build
from draftpick.engines.atomic_write import atomic_write
from draftpick.router.config.router_config import DraftpickConfig
from draftpick.router.registry.registry import STATE, Registry

State = dict[str, Any]
Do = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """`undo` None: it heals by itself. `over`: whether the system is well again, by the router's state."""

    name: str
    do: Do
    undo: Do | None
    over: Callable[[State], bool]
    lasts_s: float = 8.0


class Chaos:
    """Does faults to the fleet of `config`. `registry`: `p0001` is uniform and active, `p0002` fixed to one engine;
    `disk`: a small file system that holds the records, if there is one.
    """

    def __init__(self, config: DraftpickConfig, registry: Registry, disk: Path | None) -> None:
        self._config, self._registry, self._disk = config, registry, disk
        self._router = serve.get_deployment_handle("router", APP_NAME)
        self._replicas = {e.name: e.deployment.num_replicas for e in config.engines}
        self.peak_rss_mb = 0.0

    @property
    def model(self) -> str:
        """What requests must name."""
        return self._config.target.name

    async def state(self) -> State:
        """What a replica of the router says of itself."""
        return dict(await self._router.state.remote())

    async def states(self) -> list[State]:
        """What every replica of the router says of itself."""
        answers = await self._router.broadcast("state").results_async(return_exceptions=True)
        return [answer for answer in answers if isinstance(answer, dict)]

    def well(self, state: State) -> bool:
        """Every engine has its replicas, every breaker is closed, no arm is suspected."""
        closed = all(s == "closed" for replicas in state["breakers"].values() for s in replicas.values())
        return closed and state["engines"] == self._replicas and set(state["quarantine"].values()) == {"ok"}

    def mock_faults(self) -> list[Fault]:
        """All that mock engines can suffer."""
        spec = {e.name: e.mock for e in self._config.engines if e.mock is not None}
        step_s = spec["suffix"].step_s
        return [
            self.killed("ngram"),
            self.killed("pool", "kill_pool"),
            self._mocked("hang_pool", "pool", {"hang_share": 1.0}, {"hang_share": 0.0}),
            self._mocked("cut_pool_in_mid_draft", "pool", {"break_share": 0.5}, {"break_share": 0.0}),
            self._mocked("hang", "suffix", {"hang_share": 1.0}, {"hang_share": 0.0}),
            self._mocked("slow", "suffix", {"step_s": 40 * step_s}, {"step_s": step_s}),
            self._mocked("garbage", "math", {"garbage_share": 1.0}, {"garbage_share": 0.0}),
            self._mocked("cut_in_mid_stream", "ngram", {"break_share": 0.5}, {"break_share": 0.0}),
            self._mocked("refuse", "suffix", {"refuse_share": 1.0}, {"refuse_share": 0.0}),
            self._mocked("fail", "math", {"fail_share": 0.7}, {"fail_share": 0.0}),
            self._mocked(
                "odd_engine",
                "ngram",
                {"garbage_share": 0.3, "break_share": 0.2, "refuse_share": 0.2, "fail_share": 0.1, "hang_share": 0.1},
                dict.fromkeys(("garbage_share", "break_share", "refuse_share", "fail_share", "hang_share"), 0.0),
            ),
            Fault("redeploy_and_scale_down", self._redeploy, None, self.well),
            self.reloaded(),
            self.broken_policy(),
            Fault("disk_full", self._fill, self._empty, self.well),
            self.router_killed(),
        ]

    # --- faults ---

    def killed(self, engine: str, name: str = "kill_engine") -> Fault:
        """A replica's process is killed."""

        async def do() -> None:
            kill(f"engine-{engine}")

        return Fault(name, do, None, self.well)

    def router_killed(self) -> Fault:
        """One replica of the router is killed."""

        async def do() -> None:
            kill("draftpick:router")

        return Fault("kill_router", do, None, self.well)

    def reloaded(self) -> Fault:
        """Another policy is activated."""

        async def do() -> None:
            self._registry.promote("p0002", "chaos")

        return Fault(
            "reload_policy", do, None, lambda s: s["policy"].startswith("fixed:") and s["policy_rejected"] is None
        )

    def broken_policy(self) -> Fault:
        """The state of the registry is damaged; the policy before serves on. Over when another one is activated."""
        file, whole = self._registry.path / STATE, ""

        async def do() -> None:
            nonlocal whole
            whole = file.read_text()
            atomic_write(file, "damaged", mode=0o644)

        async def undo() -> None:
            state = await self.state()
            if state["policy_rejected"] is None or not state["policy"].startswith("fixed:"):
                raise AssertionError(f"a broken policy was taken: {state['policy']}")
            atomic_write(file, whole, mode=0o644)
            self._registry.promote("p0001", "chaos")

        return Fault("offer_broken_policy", do, undo, lambda s: s["policy"] == "uniform", lasts_s=3)

    def _mocked(self, name: str, arm: str, ill: dict[str, float], healed: dict[str, float]) -> Fault:
        async def tell(fields: dict[str, float]) -> None:
            async with httpx.AsyncClient(timeout=10) as client:
                for url in (await self.state())["breakers"][arm]:
                    (await client.post(f"{url}/mock/state", json=fields)).raise_for_status()

        async def do() -> None:
            await tell(ill)

        async def undo() -> None:
            await tell(healed)

        return Fault(name, do, undo, self.well)

    async def _redeploy(self) -> None:
        """Replace every deployment, with one replica fewer of the first engine that has two."""
        fields = self._config.model_dump(mode="json")
        first = next(e for e in fields["engines"] if e["deployment"]["num_replicas"] > 1)
        first["deployment"]["num_replicas"] -= 1
        self._replicas[first["name"]] -= 1
        target = serve.RunTarget(build(fields), name=APP_NAME, route_prefix="/")
        await asyncio.to_thread(serve.run_many, [target], wait_for_applications_running=False)
        await asyncio.sleep(5)  # it takes a moment before Serve says that it updates
        while serve.status().applications[APP_NAME].status != "RUNNING":  # noqa: ASYNC110  # Serve tells nobody
            await asyncio.sleep(0.5)

    async def _fill(self) -> None:
        if self._disk is None:
            return
        with contextlib.suppress(OSError), (self._disk / "filler").open("wb") as file:
            while True:
                file.write(b"x" * 4096)
                file.flush()

    async def _empty(self) -> None:
        if self._disk is not None:
            (self._disk / "filler").unlink(missing_ok=True)

    # --- watching ---

    async def watch_memory(self) -> None:
        """Keep the largest resident memory of any router replica."""
        while True:
            for process in processes("draftpick:router"):
                with contextlib.suppress(psutil.Error):
                    self.peak_rss_mb = max(self.peak_rss_mb, process.memory_info().rss / 1e6)
            await asyncio.sleep(1)


def processes(word: str) -> list[psutil.Process]:
    """Replicas below this process that are called so."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ServeReplica" in (name := " ".join(process.cmdline())) and word in name:
                found.append(process)
    return found


def kill(word: str) -> None:
    """Kill -9 the first replica that is called so."""
    processes(word)[0].kill()


@contextlib.contextmanager
def small_disk(at: Path, size: str = "160m") -> Any:
    """A small file system at `at`, where this user may mount one; else None."""
    at.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)], capture_output=True)
    try:
        yield at if made.returncode == 0 else None
    finally:
        if made.returncode == 0:
            subprocess.run(["umount", "-l", str(at)], check=False)
