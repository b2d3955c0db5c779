"""Through the router against straight to vLLM: `python -m tests.bench.overhead.real_engine`.

The embedded target without a drafter; greedy streams of 64 tokens, one at a time, straight to the engine, through Ray
Serve's proxy and its router, and through `draftpick route`, in turn. Compared prompt by prompt, in repeats.
"""

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import uvloop
import yaml

from draftpick.deploy.config import resolve, with_engines, with_router
from draftpick.deploy.console import progress_bar
from draftpick.deploy.launch.ports import free_port
from draftpick.deploy.launch.ray_serve import running
from draftpick.deploy.launch.standalone import RouterProcesses
from draftpick.deploy.workflows.prepare_models import prepare_models
from draftpick.deploy.workflows.results import write
from draftpick.policy_training.workloads import generate
from tests.bench.figures import show, spread
from tests.bench.overhead.load import Connection, Seen, as_bytes

_TOKENS = 64


async def in_turn(urls: dict[str, str], model: str, prompts: list[str]) -> dict[str, list[Seen]]:
    """Answers of every path to every prompt."""
    connections = {name: await Connection.open(url) for name, url in urls.items()}
    seen: dict[str, list[Seen]] = {name: [] for name in urls}
    for number, prompt in enumerate(prompts):
        asked = {
            "model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": _TOKENS,
            "ignore_eos": True, "temperature": 0, "stream": True,
        }  # fmt: skip
        names = list(urls)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seen[name].append(await connections[name].ask(as_bytes(urls[name], asked), stream=True))
    for connection in connections.values():
        connection.close()
    assert all(one.ok for answers in seen.values() for one in answers)
    return seen


def figures(seen: dict[str, list[Seen]]) -> dict[str, float]:
    """`<path>/ttft_overhead_ms` and `<path>/throughput_share`, medians over prompts of differences and of ratios."""
    found = {}
    for name in seen:
        pairs = list(zip(seen["direct"], seen[name], strict=True))
        found[f"{name}/ttft_ms"] = float(np.median([own.ttft_s for _, own in pairs])) * 1e3
        if name != "direct":
            found[f"{name}/ttft_overhead_ms"] = float(np.median([b.ttft_s - a.ttft_s for a, b in pairs])) * 1e3
            found[f"{name}/throughput_share"] = float(np.median([a.e2e_s / b.e2e_s for a, b in pairs]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=8, help="prompts of a repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    fleet = with_router(with_engines(resolve("embedded"), ["plain"]), policy="embedded")
    prepare_models(fleet)
    with ExitStack() as stack:
        bar = stack.enter_context(progress_bar())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        serve = stack.enter_context(running(fleet, port=free_port(), timeout_s=900))
        (engine,) = httpx.get(f"{serve}/ready").json()["breakers"]["plain"]
        file = folder / "route.yaml"
        router = {"policy": "embedded", "default_engine": "plain", "records": {"dir": str(folder / "records")}}
        route_fleet = {"target": {"name": fleet.target.name}, "engines": [{"name": "plain", "url": engine}]}
        file.write_text(yaml.safe_dump({**route_fleet, "router": router}))
        routers = RouterProcesses(resolve(file), "127.0.0.1", 0, 1)
        stack.callback(routers.stop)
        routers.wait()
        urls = {"direct": engine, "route": routers.url, "serve": serve}
        row, runs = bar.add_task("repeats", total=args.repeats), []
        for repeat in range(args.repeats):
            prompts = [prompt.text for prompt in generate(args.n, seed=400 + repeat)]
            uvloop.run(in_turn(urls, fleet.target.name, prompts[:2]))
            runs.append(figures(uvloop.run(in_turn(urls, fleet.target.name, prompts))))
            bar.advance(row)
    found = {name: spread([run[name] for run in runs]) for name in runs[0]}
    found |= {name: found[f"serve/{name}"] for name in ("ttft_overhead_ms", "throughput_share")}
    show(found)
    if args.json_file:
        write(args.json_file, args.n * args.repeats, found)


if __name__ == "__main__":
    main()
