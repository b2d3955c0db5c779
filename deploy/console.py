"""What all commands print to, their progress bar, and the prompts they read."""

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
    """One line on stderr, and an exit code."""
    err.print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(code)


def progress_bar() -> Progress:
    """A progress bar on stderr, silent where stderr is no terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=err, disable=not err.is_terminal)


def say(as_json: bool, result: dict[str, Any], text: str) -> None:
    """The result for a program, or the text for a person."""
    if as_json:
        print(json.dumps(result))
    else:
        out.print(text, highlight=False)


def load_prompts(path: Path | None, n: int, seed: int, sampled_share: float, max_tokens: int) -> list[Any]:
    """`n` prompts of a file, of all its kinds in turn, or generated ones.

    Lines of a file that say their own temperature and max_tokens keep them.
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
