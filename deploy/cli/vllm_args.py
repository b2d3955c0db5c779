"""`draftpick vllm-args`: an engine of a fleet by `vllm serve`, without Ray."""

import shlex
from typing import Annotated

import typer

from draftpick.deploy.config import resolve
from draftpick.deploy.console import err
from draftpick.engines.config import did_you_mean
from draftpick.engines.errors import ConfigError

vllm_args_app = typer.Typer()


@vllm_args_app.command("vllm-args")
def vllm_args(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a fleet.")],
    engine: Annotated[
        str | None, typer.Option("--engine", help="Engine of the fleet; default: the first pool, else the first one.")
    ] = None,
) -> None:
    """Print the arguments with which `vllm serve` becomes an engine of a fleet, a pool of drafters for example.

    Nothing else of Draftpick need run: `pip install draftpick` beside vLLM, and vLLM loads what the arguments name. A
    router may be put in front later, with the address of this server as `url`.

    Examples:

      draftpick vllm-args pool.yaml | xargs vllm serve
      draftpick vllm-args fleet.yaml --engine math | xargs vllm serve --port 8001
    """
    from draftpick.engines.vllm.arguments import V1_RUNNER, command_line

    fleet = resolve(config)
    engines = {one.name: one for one in fleet.engines if one.kind == "vllm"}
    if engine is None:
        engine = next((name for name, one in engines.items() if one.is_pool), next(iter(engines), None))
    if engine not in engines:
        hint = did_you_mean(engine or "", engines)
        raise ConfigError("--engine", f"no engine {engine!r} that vLLM runs", f"{hint}engines: {', '.join(engines)}")
    print(shlex.join(command_line(fleet, engines[engine])))
    if engines[engine].is_pool and engines[engine].deployment.accelerator == "gpu":
        err.print(f"on GPUs, set {' '.join(f'{name}={value}' for name, value in V1_RUNNER.items())}", highlight=False)
