"""Ray Serve LLM's server as a replica runs it. Imported in replicas alone: it loads vLLM."""

from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.serve.llm import LLMConfig, LLMServer


class EngineServer(LLMServer):
    """`LLMServer` that starts its engine and no telemetry actor (which would load vLLM once more, 0.25 GB)."""

    async def _start_engine(self) -> None:
        await self.engine.start()


class LocalModel(CallbackBase):
    """For a model that is a folder on this node: no download task, which would load vLLM in one more process."""

    async def on_before_node_init(self) -> None:
        """Called by Ray Serve LLM before it would download the model."""
        self.ctx.run_init_node = False


async def start(config: dict[str, Any]) -> EngineServer:
    """A started server for the arguments of `LLMConfig`."""
    server: EngineServer = EngineServer.sync_init(LLMConfig(**config))
    await server.start()
    return server
