"""Memory of the whole fleet and time to ready: `python -m tests.bench.footprint --json-file FILE`.

PSS (shared pages counted once) of `draftpick serve` and all its descendants: Ray's daemons, replicas, vLLM's workers.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

from draftpick.deploy.workflows.results import merge_into, write
from draftpick.policy_training.evaluation.evaluate import Interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="embedded")
    parser.add_argument("--name", help="prefix of the figures; with it they are added to those of the files")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--port", type=int, default=8077)
    parser.add_argument("--json-file", type=Path, nargs="+", default=[])
    args = parser.parse_args()
    runs = [measure(args.config, args.port) for _ in range(args.repeats)]
    figures = {name: _spread([run[name] for run in runs]) for name in runs[0]}
    for name, figure in figures.items():
        print(f"{name:16} {figure.value:8.2f}  [{figure.low:.2f}, {figure.high:.2f}]")
    for path in args.json_file:
        if args.name:
            merge_into(path, {f"{args.name}/{key}": figure for key, figure in figures.items()})
        else:
            write(path, args.repeats, figures)


def measure(config: str, port: int) -> dict[str, float]:
    """One start of the fleet: seconds to ready, then GB of PSS after one request to each engine."""
    started = time.monotonic()
    command = [str(Path(sys.executable).with_name("draftpick")), "serve", "--config", config, "--port", str(port)]
    process = psutil.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if line.startswith("ready"):
                break
        ready_s = time.monotonic() - started
        if process.poll() is not None:
            raise SystemExit("the fleet did not start")
        _use(f"http://127.0.0.1:{port}")
        parts = _pss_gb(process)
        return {"ready_s": ready_s, "fleet_pss_gb": sum(parts.values()), **{f"pss_gb/{k}": v for k, v in parts.items()}}
    finally:
        process.terminate()
        process.wait(120)


def _use(url: str) -> None:
    engines = httpx.get(f"{url}/ready").json()["engines"]
    model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    body = {"model": model, "messages": [{"role": "user", "content": "Count to ten."}], "max_tokens": 32}
    for engine in engines:
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers={"x-draftpick-arm": engine}, timeout=120)
        answer.raise_for_status()


def _pss_gb(root: psutil.Process) -> dict[str, float]:
    parts: dict[str, float] = {}
    for process in [root, *root.children(recursive=True)]:
        try:
            part, pss = _part(process), process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
        parts[part] = parts.get(part, 0.0) + pss / 2**30
    return parts


def _part(process: psutil.Process) -> str:
    title = " ".join(process.cmdline())
    for mark, part in (("VLLM::", "vllm"), (":engine-", "engine_replicas"), (":router", "router")):
        if mark in title:
            return part
    return "ray_and_cli"


def _spread(values: list[float]) -> Interval:
    return Interval(sorted(values)[len(values) // 2], min(values), max(values))


if __name__ == "__main__":
    main()
