"""`draftpick explain`: why the router would choose an engine."""

import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.markup import escape
from rich.table import Table

from draftpick.deploy.cli.options import Json, MaxTokens, Url
from draftpick.deploy.console import fail, out
from draftpick.engines.errors import DraftpickError
from draftpick.router.policies.costs import FOREIGN

explain_app = typer.Typer()

_PATIENCE_S = 30.0
_HERE = "-"
_WORTH_TELLING = 0.005


@explain_app.command()
def explain(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; `-`: read it from standard input.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="File with the prompt, or with a whole request (.json).")
    ] = None,
    url: Url = "http://127.0.0.1:8000",
    max_tokens: MaxTokens = 128,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, max=2, help="Sampling temperature; 0: greedy.")
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Explain which engine a request would go to, with the predictions for every engine. Sends nothing to engines.

    If the router requires API keys, set DRAFTPICK_ADMIN_KEYS to one with the scope `admin`.

    Examples:

      draftpick explain "What is 12 * 7?"
      draftpick explain --file prompt.txt --temperature 0.7
      draftpick explain --file request.json --json
    """
    told = explained(url, _body(prompt, file, max_tokens, temperature))
    if as_json:
        print(json.dumps(told))
        return
    out.print(escape(f"{told['tipped']}."), highlight=False)
    out.print(_table(told))
    out.print(escape(_facts(told)), highlight=False, style="dim")


def explained(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The router's explanation of a request. Raises `DraftpickError`, and httpx.HTTPError if it does not answer."""
    from draftpick.policy_training.data.collect import authorization
    from draftpick.router.config.sections import ADMIN_KEY_VARIABLE

    answer = httpx.post(f"{url}/v1/route/explain", json=body, timeout=_PATIENCE_S, headers=authorization())
    try:
        found = answer.json()
    except ValueError:
        found = None
    if answer.status_code in (401, 403):
        raise DraftpickError(f"{url} needs a key with the scope `admin`: put one into {ADMIN_KEY_VARIABLE}")
    if not isinstance(found, dict) or "tipped" not in found:
        error = found.get("error") if isinstance(found, dict) else None
        why = error.get("message") if isinstance(error, dict) else f"it answered {answer.status_code}: is it a router?"
        raise DraftpickError(f"{url}: {why}")
    return found


def _body(prompt: str | None, file: Path | None, max_tokens: int, temperature: float) -> dict[str, Any]:
    """The body of the request."""
    if (prompt is None) == (file is None):
        fail("give a prompt, or --file", 2)
    if file is not None and file.suffix == ".json":
        found = json.loads(file.read_text())
        if not isinstance(found, dict):
            fail(f"{file} is not a JSON object", 2)
        return found
    text = file.read_text() if file is not None else sys.stdin.read() if prompt == _HERE else prompt
    return {"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "temperature": temperature}


def _table(on_progress: dict[str, Any]) -> Table:
    """One row per engine, the most probable first."""
    columns = ("chance", "expected", "first token", "decoding", "tokens per step", "in flight", "counts as")
    table = Table("engine")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("")
    for row in sorted(on_progress["arms"], key=_order):
        style = "bold" if row["arm"] == on_progress["arm"] else None if row["eligible"] else "dim"
        table.add_row(row["arm"], *_cells(row), _notes(row), style=style)
    return table


def _order(row: dict[str, Any]) -> tuple[float, float]:
    predicted = row["predicted"]
    return -row["probability"], predicted["weighted_s"] if predicted else 0.0


def _cells(row: dict[str, Any]) -> list[str]:
    one, chance = row["predicted"], f"{100 * row['probability']:.3g} %"
    if one is None:
        return [chance, "", "", "", "", str(row["total_in_flight"]), ""]
    times = [_time(one[name]) for name in ("seconds", "ttft_s", "decode_s")]
    return [chance, *times, f"{one['tau']:.2f}", str(row["total_in_flight"]), _time(one["weighted_s"])]


def _notes(row: dict[str, Any]) -> str:
    """Notes on an engine: why it is not eligible, and what affects its times."""
    notes = [] if row["eligible"] else [str(row.get("unable") or row["ineligible_reason"]).replace("_", " ")]
    if (one := row["predicted"]) is not None:
        slowdown, wait_s, cached_prefix_s, residual = (
            one[name] for name in ("slowdown", "wait_s", "cached_prefix_s", "residual")
        )
        notes += [row["costs"]] * (row.get("costs") == FOREIGN)
        notes += [f"steps x{slowdown:.2f} by load"] * (slowdown > _WORTH_TELLING + 1)
        notes += [f"waits {_time(wait_s)}"] * (wait_s > 0)
        notes += [f"cached prefix saves {_time(cached_prefix_s)}"] * (cached_prefix_s > 0)
        if one.get("low_s") is not None:
            notes.append(f"probably {_time(one['low_s'])} to {_time(one['high_s'])}")
        notes += [f"corrected by {100 * math.expm1(residual):+.0f} %"] * (abs(residual) > _WORTH_TELLING)
    return ", ".join(notes)


def _facts(on_progress: dict[str, Any]) -> str:
    tokens, kind = on_progress["output_tokens"], on_progress["kind"]
    facts = [f"policy {on_progress['policy']}", f"objective {on_progress['objective']}"]
    facts += [] if on_progress["reason"] == "policy" else [on_progress["reason"]]
    facts += [] if tokens is None else [f"about {tokens:.0f} tokens expected"]
    facts += [] if kind is None else [f"kind: {kind['name']}"]
    if (near := on_progress.get("neighbours")) is not None:
        facts.append(f"{near:.1f} training requests near" + (", far from anything known" if on_progress["far"] else ""))
    return "; ".join(facts)


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 0.0995 else f"{seconds:.2f} s"
