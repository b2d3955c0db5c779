"""The sweep of `tests.bench.load` on real engines: `python -m tests.bench.load.real` (half an hour).

Two places, an engine of one core each: our router over `plain` and `suffix`; the same with a policy that knows no load;
twice the one or the other; both in turn; the less loaded one. Greedy and sampled requests of six kinds, with the policy
that ships. Engines measure their own profiles when they start; `suffix` keeps no text of other requests. A figure
`<strategy>/<clients>` is the mean time of an answer over our router's in the same run (above 1: we are faster).
"""

import argparse
import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve

from draftpick.deploy.app import APP_NAME
from draftpick.deploy.config import resolve, with_engines, without_shared_text
from draftpick.deploy.console import progress_bar
from draftpick.deploy.launch.ports import free_port
from draftpick.deploy.launch.ray_serve import running
from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.deploy.workflows.results import write
from draftpick.engines.http.server import LocalServer
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.policy_training.workloads import generate
from draftpick.router.config.router_config import DraftpickConfig, load_config
from draftpick.router.router import Router
from tests.bench.figures import show, spread
from tests.bench.load.driver import answered

_ARMS, _TOKENS, _CLIENTS = ("plain", "suffix"), 32, (1, 4, 16, 32)
_ALL = ("fixed/plain", "fixed/suffix", "round_robin", "least_loaded", "text_only", "routed")
Urls = Mapping[str, Sequence[str]]


def fleet() -> DraftpickConfig:
    """Two replicas of each engine; of a replica at most one core is used."""
    fields = without_shared_text(with_engines(resolve("seven"), list(_ARMS))).model_dump(mode="json")
    for engine in fields["engines"]:
        engine["deployment"] |= {"num_replicas": 2, "num_cpus": 1.0, "profile": "auto"}
    return resolve(fields)


def router(name: str, urls: Urls, model: str) -> Router:
    """A router over two engines, as a strategy has it."""
    kind, _, fixed = name.partition("/")
    sources = {arm: [urls[arm][0]] for arm in _ARMS}
    if fixed or name == "least_loaded":
        sources = {"all": list(urls[fixed]) if fixed else [urls[arm][0] for arm in _ARMS]}
    policy = "embedded" if kind in ("text_only", "routed") else "fixed"
    settings: dict[str, Any] = {"policy": policy, "default_engine": next(iter(sources)), "seed": 0}
    settings |= {"load": {"enabled": kind != "text_only"}}
    engines = [{"name": arm, "url": there[0]} for arm, there in sources.items()]
    config = load_config({"target": {"name": model}, "engines": engines, "router": settings})

    def addresses(there: list[str]) -> Any:
        async def found() -> list[str]:
            return there

        return found

    return Router(config, {arm: addresses(there) for arm, there in sources.items()})


async def measured(made: Router, turns: Sequence[str] | None, bodies: Sequence[dict[str, Any]], clients: int) -> float:
    """Mean seconds of an answer through a router."""
    async with AsyncExitStack() as stack:
        await made.start()
        stack.push_async_callback(made.stop)
        server = LocalServer(made.app)
        await server.start()
        stack.push_async_callback(server.drain, 5.0)
        return await answered(server.url, turns, bodies, clients)


def requests(model: str, clients: int, n: int, seed: int) -> list[dict[str, Any]]:
    """`n` requests that count, and those before and after them."""
    made = generate(n + 2 * clients, seed=seed, sampled_share=0.5, max_tokens=_TOKENS)
    return [
        {
            "model": model, "messages": [{"role": "user", "content": p.text}], "max_tokens": _TOKENS,
            "temperature": p.temperature, "seed": seed,
        }
        for p in made
    ]  # fmt: skip


def run(
    urls: Urls, model: str, n: int, seed: int, loads: Sequence[int], on_progress: Any
) -> dict[str, dict[int, float]]:
    """Mean seconds by strategy and clients."""
    found: dict[str, dict[int, float]] = {name: {} for name in _ALL}
    for clients in loads:
        bodies = requests(model, clients, max(n, 2 * clients), 100 * seed + clients)
        for name in np.random.default_rng([seed, clients]).permutation(_ALL):
            turns = _ARMS if name == "round_robin" else None
            found[name][clients] = asyncio.run(measured(router(name, urls, model), turns, bodies, clients))
            on_progress()
    return found


def figures(runs: Sequence[dict[str, dict[int, float]]]) -> dict[str, Interval]:
    """What is reported of all runs."""
    loads = list(runs[0]["routed"])
    others = [name for name in _ALL if name != "routed"]
    ratios = {
        f"{name}/{c}": spread([one[name][c] / one["routed"][c] for one in runs]) for name in others for c in loads
    }
    best = {
        f"best_other/{c}": spread([min(one[name][c] for name in others) / one["routed"][c] for one in runs])
        for c in loads
    }
    return {**best, **ratios, **{f"routed_s/{c}": spread([one["routed"][c] for one in runs]) for c in loads}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=16, help="requests that count, of each strategy and load; at least")
    parser.add_argument("--repeats", type=int, default=3, help="runs, with other prompts each")
    parser.add_argument("--clients", type=int, nargs="*", default=_CLIENTS)
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    logging.getLogger("draftpick").setLevel(logging.ERROR)
    config = fleet()
    prepare_models(config)
    with progress_bar() as bar, running(config, port=free_port(), timeout_s=900):
        row = bar.add_task("strategies", total=args.repeats * len(_ALL) * len(args.clients))
        handles = {arm: serve.get_deployment_handle(f"engine-{arm}", APP_NAME) for arm in _ARMS}
        urls = {arm: handle.broadcast("address").results(timeout_s=30) for arm, handle in handles.items()}
        runs = [
            run(urls, config.target.name, args.n, i, args.clients, lambda: bar.advance(row))
            for i in range(args.repeats)
        ]
    found = figures(runs)
    show(found)
    if args.json_file:
        write(args.json_file, args.n * args.repeats, found)


if __name__ == "__main__":
    main()
