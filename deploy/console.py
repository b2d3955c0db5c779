"""Output of all commands, their progress bar, and reading of prompts."""

import json
import sys
from collections.abc import Sequence
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


def load_prompts(
    sources: Sequence[str],
    n: int,
    seed: int,
    sampled_share: float,
    max_tokens: int,
    split: Any = None,
    overlap: Any = "fail",
) -> list[Any]:
    """Read `n` prompts of sources (`FILE[:kind][@n]`), their tasks alternating; none: generated ones.

    Rows with their own temperature and max_tokens keep them. Says on stderr what each file holds.
    """
    from draftpick.policy_training.workloads import PromptSource, Selection, generate, prompts_of

    if not sources:
        return generate(n, seed=seed, sampled_share=sampled_share, max_tokens=max_tokens)
    options = Selection(seed, seed, (), max_tokens, sampled_share, split, overlap)
    parsed = [PromptSource.parse(source) for source in sources]
    describe_files(sources, max_tokens)
    return prompts_of(parsed, n, options)


def describe_files(sources: Sequence[str], max_tokens: int = 128) -> None:
    """Print a line on stderr about each file of prompts: its format, what it holds, and what is left out."""
    from draftpick.policy_training.workloads.card import describe, prompt_cards

    for card in prompt_cards(sources, max_tokens):
        err.print(describe(card), highlight=False, soft_wrap=True, markup=False)
