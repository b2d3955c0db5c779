"""A headless Chromium, if the machine has one, by its own protocol (Chrome DevTools Protocol over a web socket)."""

import asyncio
import base64
import importlib.util
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_START_S = 30.0
_AXE = "axe_playwright_python"
_CODES = {"Tab": 9, "Enter": 13, "Escape": 27}
_OPTIONS = (
    *("--headless=new", "--remote-debugging-port=0", "--no-first-run", "--disable-gpu", "--hide-scrollbars"),
    *("--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--force-color-profile=srgb"),
)


def executable() -> str | None:
    """Where a Chromium is; None where there is none."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


class Failed(Exception):
    """What a page was asked to do, it did not."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What axe-core finds wrong. `impact`: minor, moderate, serious or critical; `where`: selectors of elements."""

    rule: str
    impact: str
    where: tuple[str, ...]

    @property
    def serious(self) -> bool:
        """Whether it keeps somebody from using the page, or nearly so."""
        return self.impact in ("serious", "critical")


class Tab:
    """One page. `told`: errors of its console and of its scripts, and what its security policy forbade.

    `asked`: the addresses of all its requests, those of its web sockets among them.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.told: list[str] = []
        self.asked: list[str] = []
        self._reader = asyncio.create_task(self._read())

    async def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command. Raises `Failed`."""
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        answer = await asyncio.wait_for(self._waiting[number], 20)
        if "error" in answer:
            raise Failed(f"{method}: {answer['error']['message']}")
        found: dict[str, Any] = answer["result"]
        return found

    async def run(self, script: str) -> Any:
        """The value of an expression, awaited."""
        found = await self.command("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise Failed(f"{script}: {found['exceptionDetails']['exception'].get('description')}")
        return found["result"].get("value")

    async def until(self, script: str, timeout_s: float = 10.0) -> None:
        """Return when an expression is true. Raises `Failed`."""
        for _ in range(round(timeout_s / 0.02)):
            if await self.run(f"Boolean({script})"):
                return
            await asyncio.sleep(0.02)
        raise Failed(f"not so within {timeout_s:g} s: {script}")

    async def open(self, url: str) -> None:
        """Go to an address, and wait until its files are there."""
        await self.command("Page.navigate", url=url)
        await self.until("location.href !== 'about:blank' && document.readyState === 'complete'")

    async def text(self, selector: str) -> str:
        """What an element shows."""
        return str(await self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    async def click(self, selector: str) -> None:
        """Click an element."""
        await self.run(f"document.querySelector({json.dumps(selector)}).click()")

    async def press(self, key: str) -> None:
        """Press a key, as somebody at a keyboard does."""
        code = {"windowsVirtualKeyCode": _CODES[key], "code": key} if key in _CODES else {}
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        await self.command("Input.dispatchKeyEvent", type="keyDown", key=key, text=text, **code)
        await self.command("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    async def look(self, width: int, height: int, scheme: str = "light") -> None:
        """Take this size and this colour scheme of the system."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.command("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.command("Emulation.setEmulatedMedia", features=features)

    async def picture(self, path: Path, whole: bool = False) -> None:
        """Write what is seen, or the `whole` page, as PNG."""
        found = await self.command("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(found["data"]))

    async def faults(self) -> list[Fault]:
        """What axe-core finds wrong with the page as it is now.

        It runs in a world of its own beside the page's scripts: the page's security policy forbids it nothing there,
        and stays as it is.
        """
        frame = (await self.command("Page.getFrameTree"))["frameTree"]["frame"]["id"]
        made = await self.command("Page.createIsolatedWorld", frameId=frame, worldName="axe")
        world = {"contextId": made["executionContextId"], "awaitPromise": True, "returnByValue": True}
        await self.command("Runtime.evaluate", expression=_axe(), **world)
        found = await self.command("Runtime.evaluate", expression=_RUN_AXE, **world)
        if "exceptionDetails" in found:
            raise Failed(f"axe-core: {found['exceptionDetails']['exception'].get('description')}")
        return [
            Fault(one["id"], one["impact"], tuple(" ".join(map(str, node["target"])) for node in one["nodes"]))
            for one in found["result"]["value"]
        ]

    def hosts(self) -> set[str]:
        """All that it sent requests to, as host:port. What an address itself holds (`data:`) was sent nowhere."""
        return {host for url in self.asked if (host := urlsplit(url).netloc)}

    async def _read(self) -> None:
        async for message in self._socket:
            told = json.loads(message)
            if (number := told.get("id")) is not None:
                self._waiting.pop(number).set_result(told)
            else:
                self._note(told["method"], told["params"])

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.told.append(str(params["exceptionDetails"].get("exception", {}).get("description")))
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.told.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif event == "Network.webSocketCreated":
            self.asked.append(params["url"])

    async def close(self) -> None:
        """Read no more."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)


_HURRY = "const wait = setTimeout; window.setTimeout = (run, ms = 0, ...rest) => wait(run, ms / %d, ...rest)"
_RUN_AXE = "axe.run(document, { resultTypes: ['violations'] }).then((found) => found.violations)"


def has_axe() -> bool:
    """Whether axe-core is installed, which comes with a package."""
    return importlib.util.find_spec(_AXE) is not None


@cache
def _axe() -> str:
    package = importlib.util.find_spec(_AXE)  # for its file: an import would need a browser's driver
    if package is None or package.origin is None:
        raise Failed("axe-core is not installed (axe-playwright-python)")
    return (Path(package.origin).parent / "axe.min.js").read_text()


@asynccontextmanager
async def tab(hurry: int = 1) -> AsyncIterator[Tab]:
    """An empty page of a browser of its own. `hurry`: timers of its scripts run so many times as fast."""
    path = executable()
    if path is None:
        raise Failed(f"no browser here ({', '.join(_NAMES)})")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        quiet = asyncio.subprocess.DEVNULL
        command = [path, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        process = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet)
        try:
            async with connect(await _address(Path(profile)), max_size=None) as socket:
                made = Tab(socket)
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await made.command(f"{domain}.enable")
                if hurry > 1:
                    await made.command("Page.addScriptToEvaluateOnNewDocument", source=_HURRY % hurry)
                yield made
                await made.close()
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _address(profile: Path) -> str:
    """The web socket of the browser's one page."""
    import httpx

    port = profile / "DevToolsActivePort"
    async with httpx.AsyncClient() as client:
        for _ in range(round(_START_S / 0.05)):
            await asyncio.sleep(0.05)
            lines = port.read_text().split() if port.exists() else []
            if not lines:
                continue
            pages = (await client.get(f"http://127.0.0.1:{lines[0]}/json/list")).json()
            if found := [page for page in pages if page["type"] == "page"]:
                return str(found[0]["webSocketDebuggerUrl"])
    raise Failed("the browser did not start")
