"""The composition root: builds one Ray Serve application, engines and router, from a configuration.

`serve run draftpick.deploy.app:build config=embedded`, a Serve YAML file with `import_path:
draftpick.deploy.app:build`, and `draftpick serve` all come here.
"""

from typing import Any

from ray import serve

from draftpick.deploy.config import resolve
from draftpick.engines.deployment import build_engine
from draftpick.router.deployment import RouterDeployment

APP_NAME = "draftpick"
_IN_ONE_LOOP = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
"""The router never blocks, so it runs in Serve's own event loop: a separate thread would cost two hops per request."""


def build(args: dict[str, Any]) -> serve.Application:
    """The application for `args`: `{"config": <fleet name or YAML file>}`, or the configuration itself."""
    config = resolve(args["config"] if set(args) == {"config"} else args)
    handles = {e.name: build_engine(config, e) for e in config.engines if e.kind != "url"}
    router = config.router
    options: dict[str, Any] = {
        "name": "router",
        "num_replicas": router.num_replicas,
        "max_ongoing_requests": 10_000,
        "graceful_shutdown_timeout_s": config.drain_timeout_s,
        "ray_actor_options": {"num_cpus": 0.1, "runtime_env": {"env_vars": _IN_ONE_LOOP}},
    }
    if router.logs.format == "json":
        options["logging_config"] = {"encoding": "JSON", "enable_access_log": False}
    deployment = serve.deployment(RouterDeployment, **{**options, **router.deployment_options})
    return deployment.bind(config.model_dump(mode="json"), handles)
