"""vLLM's own client benchmark, `vllm bench serve`, as a process: the package for CPUs has no such script of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_SCRIPT = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def bench_serve(url: str, model: str, tokenizer: str, folder: Path, prompts: int, tokens: int) -> dict[str, Any]:
    """What it found of `prompts` streamed chat requests, as it writes it."""
    options = {
        "backend": "openai-chat", "base-url": url, "endpoint": "/v1/chat/completions", "model": model,
        "tokenizer": tokenizer, "dataset-name": "random", "random-input-len": 24, "random-output-len": tokens,
        "num-prompts": prompts, "max-concurrency": 2, "temperature": 0, "result-dir": folder,
        "result-filename": "bench.json",
    }  # fmt: skip
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-c", _SCRIPT, *arguments, "--save-result", "--disable-tqdm"]
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads((folder / "bench.json").read_text())
    return found
