"""A mock engine as a process of its own, which can be killed, and started again where it was."""

import asyncio
import sys

import httpx
import uvicorn

from draftpick.deploy.launch.ports import free_port
from draftpick.engines.mock.app import MockSpec, mock_app

_START_S = 30.0


class EngineProcess:
    """Serves `model` on a port that it keeps."""

    def __init__(self, spec: MockSpec, model: str, name: str) -> None:
        self._arguments = [model, name, spec.model_dump_json()]
        self._port = free_port()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Base URL without a trailing slash."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Return when it answers. Raises TimeoutError."""
        command = [sys.executable, "-m", "tests.engine_process", str(self._port), *self._arguments]
        self._process = await asyncio.create_subprocess_exec(*command)
        async with httpx.AsyncClient(base_url=self.url) as client:
            for _ in range(round(_START_S / 0.05)):
                try:
                    if (await client.get("/health")).status_code == 200:
                        return
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        raise TimeoutError("the engine did not start")

    async def kill(self) -> None:
        """End it as `kill -9` does, if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


def main(port: str, model: str, name: str, spec: str) -> None:
    """Serve until killed."""
    app = mock_app(MockSpec.model_validate_json(spec), model=model, engine=name)
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="error")


if __name__ == "__main__":
    main(*sys.argv[1:])
