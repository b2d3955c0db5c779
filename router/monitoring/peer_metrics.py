"""Router processes on one port exchange their metrics, each over a socket in a common folder.

A scrape reaches one of them, which returns the pages of all, so that counts do not depend on the process.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

_PATIENCE_S = 2.0
_SUFFIX = ".sock"


class PeerSockets:
    """One router among those of a private folder. `name`: its own, which its successor takes over."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self.name = folder, name
        self._server: asyncio.Server | None = None

    async def serve(self, page: Callable[[], Awaitable[str]]) -> None:
        """Serve this router's page to the others."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                writer.write((await page()).encode())
                await writer.drain()
            except ConnectionError:
                pass  # the client has disconnected
            finally:
                writer.close()

        self._server = await asyncio.start_unix_server(answer, self._path(self.name))

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.close()

    async def pages(self) -> Mapping[str, str]:
        """Pages of all reachable other routers, by name."""
        names = sorted(path.stem for path in self._folder.glob(f"*{_SUFFIX}") if path.stem != self.name)
        pages = await asyncio.gather(*(self._ask(name) for name in names))
        return {name: page for name, page in zip(names, pages, strict=True) if page}

    async def _ask(self, name: str) -> str:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                reader, writer = await asyncio.open_unix_connection(self._path(name))
                try:
                    return (await reader.read()).decode()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return ""

    def _path(self, name: str) -> str:
        return str(self._folder / f"{name}{_SUFFIX}")
