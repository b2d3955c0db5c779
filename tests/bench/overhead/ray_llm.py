"""Ray Serve LLM's own application over an engine that costs next to nothing: canned answers inside its replica.

Its ingress and its server are what users run; the engine is spared the HTTP hop that all other routers make.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ray.llm._internal.serve.core.engine.protocol import LLMEngine
from ray.serve.llm import LLMConfig, LLMServer, build_openai_app

from tests.bench.overhead.engine import MODEL, content, delta, end, pace_s, whole


class CannedEngine(LLMEngine):
    """Answers as `tests.bench.overhead.engine` does."""

    def __init__(self, llm_config: Any) -> None:
        """Nothing is loaded."""

    async def start(self) -> None:
        """Nothing is started."""

    async def check_health(self) -> None:
        """It is always well."""

    def routing_stats(self) -> dict[str, Any]:
        return {}

    async def resolve_lora(self, lora_model: Any) -> None:
        raise NotImplementedError

    async def reset_prefix_cache(self) -> None:
        raise NotImplementedError

    async def _unasked(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        raise NotImplementedError
        yield

    completions = embeddings = transcriptions = _unasked

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        from ray.llm._internal.serve.core.configs.openai_api_models import ChatCompletionResponse

        tokens = request.max_tokens or 16
        if not request.stream:
            yield ChatCompletionResponse.model_validate({k: v for k, v in whole(tokens).items() if k != "metrics"})
            return
        yield delta(role="assistant", content="").decode()
        said = request.messages[0]["content"]
        pause_s = pace_s(f'"{said}"'.encode())
        for _ in range(tokens):
            yield content().decode()
            await asyncio.sleep(pause_s)
        for event in end(tokens, usage=False):
            yield event.decode()


class CannedServer(LLMServer):
    """`LLMServer` over the canned engine, without telemetry."""

    _default_engine_cls = CannedEngine

    async def _start_engine(self) -> None:
        await self.engine.start()


def application() -> Any:
    """What `build_openai_app` makes of it; streams are not batched, which is its faster setting."""
    config = LLMConfig(
        model_loading_config={"model_id": MODEL, "model_source": "."},
        server_cls=CannedServer,
        accelerator_config={"kind": "cpu"},
        placement_group_config={"bundles": [{"CPU": 0.1}]},
        deployment_config={"max_ongoing_requests": 1000, "ray_actor_options": {"num_cpus": 0.1}},
        experimental_configs={"stream_batching_interval_ms": 0},
        callback_config={"callback_class": "draftpick.engines.vllm.llm_server.LocalModel"},
    )
    deployment = {"max_ongoing_requests": 1000, "num_replicas": 1, "ray_actor_options": {"num_cpus": 0.1}}
    return build_openai_app({"llm_configs": [config], "ingress_deployment_config": deployment})
