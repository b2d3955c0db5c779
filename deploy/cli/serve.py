"""Serving: `draftpick serve | route | epp`."""

import json
import signal
import threading
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.progress import Progress

from draftpick.deploy.cli.options import Config, RayAddress
from draftpick.deploy.console import err, out, progress_bar
from draftpick.deploy.extras import require
from draftpick.deploy.workflows.prepare_models import prepare_models

serve_app = typer.Typer()

Host = Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0: all interfaces.")]
ListenPort = Annotated[int, typer.Option("--port", help="Port to listen on.")]
PolicyName = Annotated[str | None, typer.Option("--policy", help="Overrides router.policy of the configuration.")]
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def _show_start(bar: Progress) -> Callable[[dict[str, str]], None]:
    tasks: dict[str, Any] = {}

    def show(states: dict[str, str]) -> None:
        for name, state in states.items():
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=1)
            bar.update(tasks[name], description=f"{name}: {state}", completed=1 if state == "ready" else 0)

    return show


@serve_app.command()
def serve(
    config: Config = "embedded",
    host: Host = "127.0.0.1",
    port: ListenPort = 8000,
    engines: Annotated[
        str,
        typer.Option("--engines", help="Comma-separated engines of the fleet to start: plain,suffix; default: all."),
    ] = "",
    policy: PolicyName = None,
    ray_address: RayAddress = None,
) -> None:
    """Start the engines and the router on Ray, and serve until Ctrl-C.

    Example: draftpick serve --config embedded --port 8000
    """
    require("serve")
    from draftpick.deploy.config import resolve, with_engines, with_router

    fleet = resolve(config)
    if engines:
        fleet = with_engines(fleet, [name.strip() for name in engines.split(",")])
    if policy is not None:
        fleet = with_router(fleet, policy=policy)
    _warn_of_config(fleet)
    _warn_if_open(fleet, host)
    prepare_models(fleet)
    from draftpick.deploy.launch.ray_serve import running

    stop = threading.Event()
    with (
        progress_bar() as bar,
        running(fleet, host=host, port=port, address=ray_address, progress=_show_start(bar)) as url,
    ):
        bar.stop()
        # Not earlier: Ray installs its own handlers when it starts, which end the process without draining.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        _announce(url, fleet.target.name, list(fleet.names))
        stop.wait()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler)
        err.print("draining and stopping ... (Ctrl-C again: stop immediately)")


@serve_app.command()
def route(
    config: Annotated[str, typer.Option("--config", "-c", help="A YAML file with a `url` for each engine.")],
    host: Host = "127.0.0.1",
    port: ListenPort = 8000,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Number of router processes on the port.")] = 1,
    policy: PolicyName = None,
) -> None:
    """Route to engines that run already, any `vllm serve`: the router alone, without Ray.

    Example: draftpick route --config engines.yaml --port 8000 --processes 2
    """
    fleet = _resolved(config, policy)
    _warn_if_open(fleet, host)
    _run(fleet, host, port, processes)


@serve_app.command()
def epp(
    config: Annotated[str, typer.Option("--config", "-c", help="A YAML file with a `url` for each engine.")],
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port on which gateways ask, with gRPC.")] = 9002,
    http_host: Annotated[
        str, typer.Option("--http-host", help="Address of the router's own API and pages.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option("--http-port", help="Port of the router's own API and pages.")] = 8000,
    policy: PolicyName = None,
) -> None:
    """Pick endpoints for a gateway that sends requests itself: Envoy, or a Gateway API Inference Extension.

    The gateway shows each request to the picker (Envoy's external processing) and gets the engine's address, fallbacks,
    and headers to send. Answers go straight from the engine to the client. Beside it runs a router as `draftpick route`
    starts it, with metrics and pages, for what goes around the gateway. A picker that is slow or dead stops no traffic:
    the gateway chooses by itself (`router.epp.deadline_s`).

    Engines report what became of each request, if DRAFTPICK_REPORT_SECRET or DRAFTPICK_REPORT_SECRET_FILE is set, here
    and there; without it, nothing is learned of requests. `docs/gateways.md` has an Envoy to try it with.

    Example: draftpick epp --config engines.yaml --port 9002
    """
    require("epp")
    from draftpick.deploy.config import with_router
    from draftpick.engines.errors import ConfigError
    from draftpick.engines.external import address_of
    from draftpick.engines.reporting.ticket import read_secret

    fleet = _resolved(config, policy)
    for engine in fleet.engines:
        if engine.url is not None and address_of(str(engine.url)).count("/") > 2:
            problem = "has a path, and gateways send to an address and a port"
            raise ConfigError(f"engines.{engine.name}.url", problem, "remove the path")
    fleet = with_router(fleet, leases={**fleet.router.leases.model_dump(mode="json"), "enabled": True})
    if read_secret() is None:
        _warn("no DRAFTPICK_REPORT_SECRET: engines do not report, and nothing is learned of their answers")
    for address in dict.fromkeys((host, http_host)):
        _warn_if_open(fleet, address)
    _run(fleet, http_host, http_port, 1, (host, port))


def _resolved(config: str, policy: str | None) -> Any:
    from draftpick.deploy.config import resolve, with_router

    fleet = resolve(config)
    if policy is not None:
        fleet = with_router(fleet, policy=policy)
    _warn_of_config(fleet)
    return fleet


def _run(fleet: Any, host: str, port: int, processes: int, picker: tuple[str, int] | None = None) -> None:
    """Run routers until a signal."""
    from draftpick.deploy.launch.standalone import RouterProcesses

    routers = RouterProcesses(fleet, host, port, processes, picker)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: routers.request_stop())
    try:
        routers.wait()
        _announce(routers.url, fleet.target.name, list(fleet.names))
        if picker is not None:
            out.print(f"[bold]picker[/bold]  {picker[0]}:{picker[1]}", highlight=False, soft_wrap=True)
        routers.supervise()
    finally:
        err.print("draining and stopping ...")
        routers.stop()


def _warn(text: str) -> None:
    err.print(f"[yellow]warning:[/yellow] {text}", highlight=False)


def _warn_of_config(fleet: Any) -> None:
    from draftpick.deploy.config import method_warnings, policy_warning

    for unknown in method_warnings(fleet):
        _warn(unknown)
    if warning := policy_warning(fleet):
        _warn(f"{warning}; engine {fleet.router.default_engine!r} serves")


def _warn_if_open(fleet: Any, host: str) -> None:
    from draftpick.router.http.auth import Keyring

    if host not in _LOOPBACK and not Keyring(fleet.router.keys):
        _warn(f"{host} is open to the network, and no key is required (draftpick keys new NAME, then router.keys.file)")


def _announce(url: str, model: str, arms: list[str]) -> None:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "What is 12 * 7?"}], "max_tokens": 64})
    out.print(
        f"\n[bold green]ready[/bold green] {url}/v1   model {model}   engines {', '.join(arms)}",
        highlight=False,
        soft_wrap=True,
    )
    out.print(f"[bold]page[/bold]  {url}/ui/", highlight=False, soft_wrap=True)
    out.print("\nTry:\n", highlight=False)
    print(f"  curl -i {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'\n", flush=True)
