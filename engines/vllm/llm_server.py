"""Ray Serve LLM's server, as a replica runs it. Imported in replicas only: it loads vLLM."""

from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm import LLMConfig, LLMServer


class CompactEngine(VLLMEngine):
    """`VLLMEngine` with its one CPU worker inside vLLM's engine process.

    vLLM gives a CPU worker its own process for thread binding, which we do not use; the engine process would then spin
    on one core while the worker computes, and take 0.5 GB.
    """

    def _start_async_llm_engine(self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any) -> Any:
        parallel = vllm_engine_config.parallel_config
        if parallel.distributed_executor_backend == "mp" and parallel.world_size == 1:
            parallel.distributed_executor_backend = "uni"
        return super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)


class EngineServer(LLMServer):
    """`LLMServer` without the telemetry actor (which would load vLLM again, 0.25 GB)."""

    async def _start_engine(self) -> None:
        await self.engine.start()


class LocalModel(CallbackBase):
    """Skips the download task, which would load vLLM in another process, for a model in a local folder."""

    async def on_before_node_init(self) -> None:
        """Called by Ray Serve LLM before it would download the model."""
        self.ctx.run_init_node = False


async def start(config: dict[str, Any]) -> EngineServer:
    """Return a started server for the arguments of `LLMConfig`."""
    server: EngineServer = EngineServer.sync_init(LLMConfig(**config), engine_cls=CompactEngine)
    await server.start()
    return server
