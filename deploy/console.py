"""Output of all commands, their progress bar, and reading of prompts."""

import json
import random
import sys
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

out = Console()
err = Console(stderr=True)


def fail(message: str, code: int) -> NoReturn:
    """Print one line on stderr, and exit."""
    err.print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(code)


def progress_bar() -> Progress:
    """A progress bar on stderr, silent without a terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=err, disable=not err.is_terminal)


def say(as_json: bool, result: dict[str, Any], text: str) -> None:
    """Print `result` as JSON, or `text`."""
    if as_json:
        print(json.dumps(result))
    else:
        out.print(text, highlight=False)


def load_prompts(path: Path | None, n: int, seed: int, sampled_share: float, max_tokens: int) -> list[Any]:
    """Read `n` prompts of a file, its tasks alternating, or generate them.

    Lines with their own temperature and max_tokens keep them.
    """
    from draftpick.policy_training.workloads import SAMPLED_TEMPERATURE, generate, interleaved, read_jsonl

    if path is None:
        return generate(n, seed=seed, sampled_share=sampled_share, max_tokens=max_tokens)
    greedy = read_jsonl(path, max_tokens=max_tokens)
    sampled = read_jsonl(path, max_tokens=max_tokens, temperature=SAMPLED_TEMPERATURE)
    rng = random.Random(seed)
    prompts = [pair[rng.random() < sampled_share] for pair in zip(greedy, sampled, strict=True)]
    rng.shuffle(prompts)
    return interleaved(prompts)[:n]
