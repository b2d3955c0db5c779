"""Engines as Ray Serve deployments: each replica serves an OpenAI-compatible HTTP application on its own port.

Ray Serve places, scales, replaces and drains the replicas; requests reach them over HTTP, one hop from the router. Only
the replica imports vLLM, never the process that builds the application.
"""

import math
import time
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve

from draftpick.engines.config import EMBEDDED, Engine, FleetConfig
from draftpick.engines.http.server import LocalServer
from draftpick.engines.mock.app import MockSpec, mock_app
from draftpick.engines.models.paths import target_path
from draftpick.engines.profile.keeper import ProfileKeeper
from draftpick.engines.profile.node_lock import Serving, starting
from draftpick.engines.vllm.arguments import V1_RUNNER, common_arguments, engine_arguments

_TARGET_MAX_AGE_S = 15.0
"""Validity of a router's target number of replicas."""


class EngineReplica:
    """Base of served engines: an HTTP application on its own port, with its address, load and drain."""

    _server: LocalServer
    _drain_timeout_s: float
    _keeper: ProfileKeeper | None = None
    _target: tuple[int, float] = (0, 0.0)

    async def listen(self, app: Any, host: str, drain_timeout_s: float) -> None:
        """Serve `app`; `host` may be `node` for the address of this node."""
        self._drain_timeout_s = drain_timeout_s
        address = ray.util.get_node_ip_address() if host == "node" else host
        self._server = LocalServer(app, address, serving=Serving())
        await self._server.start()

    async def address(self) -> str:
        """Return the base URL of this replica."""
        return self._server.url

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Report requests in flight, which bypass Serve's handles, and the routers' target number of replicas.

        The target is 0 if no router has set one recently.
        """
        wanted, at = self._target
        fresh = time.monotonic() - at < _TARGET_MAX_AGE_S
        return {"in_flight": float(self._server.in_flight), "wanted": float(wanted if fresh else 0)}

    async def set_target(self, replicas: int) -> None:
        """Set the number of replicas that a router wants for this engine."""
        self._target = replicas, time.monotonic()

    async def __del__(self) -> None:
        if self._keeper is not None:
            await self._keeper.stop()
        if hasattr(self, "_server"):
            await self._server.drain(self._drain_timeout_s)


class MockReplica(EngineReplica):
    async def __init__(self, engine: dict[str, Any], target: str, host: str) -> None:  # type: ignore[misc]  # Serve awaits constructors
        spec = Engine.model_validate(engine)
        app = mock_app(spec.mock or MockSpec(), model=target, engine=spec.name)
        await self.listen(app, host, spec.deployment.drain_timeout_s)


class VLLMReplica(EngineReplica):
    """Ray Serve LLM's `LLMServer` plus vLLM's own HTTP application."""

    async def __init__(  # type: ignore[misc]  # Serve awaits constructors
        self, llm_config: dict[str, Any], host: str, drain_timeout_s: float, profile: str
    ) -> None:
        from draftpick.engines.vllm.llm_server import start

        model = llm_config["model_loading_config"]["model_id"]
        async with starting():
            self._llm = await start(llm_config)
            app = await self._llm.engine.build_asgi_app()
            await self.listen(app, host, drain_timeout_s)
            await self._warm_up(model)
        if profile == "auto":
            app.state.profile_keeper = self._keeper = ProfileKeeper(self._server.url, model)
            await self._keeper.start()

    async def _warm_up(self, model: str) -> None:
        """Answer one request before the replica reports ready: the first answer is seconds slower than the second."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        async with httpx.AsyncClient(base_url=self._server.url, timeout=300) as client:
            await client.post("/v1/chat/completions", json=body)

    async def check_health(self) -> None:
        """Raise if vLLM's core is dead, so that Serve replaces the replica."""
        await self._llm.check_health()


def scale_on_demand(ctx: Any) -> tuple[float, dict[str, Any]]:
    """Serve autoscaling policy: the target set by the routers, which know all engines and the budget.

    Without such a target: replicas for `in_flight` requests at `target_ongoing_requests` each.
    """
    metrics = ctx.aggregated_metrics or {}
    if wanted := max(metrics.get("wanted", {}).values(), default=0.0):
        return math.ceil(wanted - 1e-6), {}
    reported = metrics.get("in_flight", {})
    if not reported:
        return ctx.target_num_replicas, {}
    return math.ceil(sum(reported.values()) / ctx.config.get_target_ongoing_requests()), {}


def build_engine(config: FleetConfig, engine: Engine) -> serve.Application:
    """Build the Serve application of one engine of kind `vllm` or `mock`."""
    options = deployment_options(config, engine)
    if engine.kind == "mock":
        deployment = serve.deployment(MockReplica, **options)
        return deployment.bind(engine.model_dump(mode="json"), config.target.name, config.engine_host)
    deployment = serve.deployment(VLLMReplica, **options)
    asked = engine.deployment
    return deployment.bind(llm_config(config, engine), config.engine_host, asked.drain_timeout_s, asked.profile)


def llm_config(config: FleetConfig, engine: Engine) -> dict[str, Any]:
    """Build the arguments of Ray Serve LLM's `LLMConfig` for one engine."""
    result: dict[str, Any] = {
        "model_loading_config": {"model_id": config.target.name, "model_source": target_path(config.target)},
        "engine_kwargs": engine_arguments(config, engine),
        "accelerator_config": {"kind": engine.deployment.accelerator},
        "placement_group_config": {"bundles": _bundles(engine, common_arguments(config, engine))},
        "experimental_configs": {"stream_batching_interval_ms": 0},
        # Otherwise vLLM's metrics go only to Ray's agent, and the engine's own /metrics lacks them.
        "log_engine_metrics": False,
    }
    if Path(result["model_loading_config"]["model_source"]).is_dir():
        result["callback_config"] = {"callback_class": "draftpick.engines.vllm.llm_server.LocalModel"}
    if engine.deployment.accelerator_type:
        result["accelerator_type"] = engine.deployment.accelerator_type
    return result


def deployment_options(config: FleetConfig, engine: Engine) -> dict[str, Any]:
    """Return the Serve deployment options of one engine; the user's `options` take precedence."""
    deployment = engine.deployment
    env = {"HF_HUB_OFFLINE": "1"} if config.target.source == EMBEDDED else {}
    if engine.is_pool:
        env |= V1_RUNNER
    if engine.kind == "vllm" and deployment.accelerator == "cpu":
        env |= _cpu_threads(deployment.num_cpus)
    options: dict[str, Any] = {
        "name": f"engine-{engine.name}",
        "max_ongoing_requests": 1000,
        "graceful_shutdown_timeout_s": deployment.drain_timeout_s + 10,
        "health_check_period_s": 5,
        "health_check_timeout_s": 30,
        "ray_actor_options": {"num_cpus": 0.1, "runtime_env": {"env_vars": {**env, **deployment.env}}},
    }
    if deployment.autoscaling is None:
        options["num_replicas"] = deployment.num_replicas
    else:
        policy = {"policy_function": "draftpick.engines.deployment:scale_on_demand"}
        options["autoscaling_config"] = {"policy": policy, **deployment.autoscaling.model_dump(exclude_none=True)}
    if engine.kind == "vllm":
        first, *rest = _bundles(engine, common_arguments(config, engine))
        # The replica's own actor shares the first bundle with the first worker.
        options["placement_group_bundles"] = [{**first, "CPU": first.get("CPU", 0) + 0.1}, *rest]
        options["placement_group_strategy"] = "PACK"
    return {**options, **deployment.options}


def _cpu_threads(num_cpus: float) -> dict[str, str]:
    """Set the threads of an engine's worker. By default vLLM binds the workers of all engines of a node to the same
    cores. Few of its threads allocate: two arenas of the allocator do, and take less memory."""
    threads = str(max(1, round(num_cpus)))
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": threads, "MALLOC_ARENA_MAX": "2"}


def _bundles(engine: Engine, kwargs: dict[str, Any]) -> list[dict[str, float]]:
    """Return one placement bundle per worker of a replica."""
    workers = int(kwargs.get("tensor_parallel_size", 1)) * int(kwargs.get("pipeline_parallel_size", 1))
    if engine.deployment.accelerator == "cpu":
        return [{"CPU": engine.deployment.num_cpus} for _ in range(workers)]
    bundle = {"GPU": 1.0, "CPU": engine.deployment.num_cpus}
    if engine.deployment.accelerator_type:
        bundle[f"accelerator_type:{engine.deployment.accelerator_type}"] = 0.001
    return [dict(bundle) for _ in range(workers)]
