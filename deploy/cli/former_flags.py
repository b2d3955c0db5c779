"""Command-line spellings of the last release: accepted with a warning until the next release."""

from collections.abc import Mapping, Sequence
from typing import Any

from typer.core import TyperGroup

from draftpick.deploy.console import err

COMMANDS: Mapping[str, str] = {
    "use": "policies activate",
    "curve": "learning-curve",
    "drafters table": "drafters benchmark",
    "doctor --headroom": "headroom",
}
"""Former command, possibly with a switch that selected a variant -> command."""

_DIR = {"--out": "--output-dir"}
_FILE = {"--out": "--output"}
_JSON = {"--json": "--json-file"}
_KIND = {"--kind": "--task"}
_TRAINING = {"--home": "--training-domain", "--default": "--default-engine"}
_SIZING = {"--needs": "--replica-accelerators", "--skill": "--predictability"}
FLAGS: Mapping[str, Mapping[str, str]] = {
    "collect": _DIR,
    "demo": _DIR | _JSON,
    "doctor": {"--patience": "--timeout"},
    "drafters benchmark": _DIR | _JSON | {"--again": "--report-only"},
    "drafters corpus": _FILE | _KIND,
    "drafters distill": _DIR | _KIND | {"--start": "--init-from"},
    "drafters eagle": _DIR | _KIND | {"--start": "--init-from", "--steps": "--unroll-steps"},
    "drafters layer-skip": _DIR | _KIND | {"--heal-minutes": "--distill-minutes"},
    "drafters losses": _DIR | _KIND | _JSON,
    "drafters replay": _JSON,
    "encoder": _DIR,
    "evaluate": {"--default": "--default-engine"},
    "headroom": _DIR | {"--worth": "--min-gain"},
    "label": _DIR
    | {
        "--alone": "--standalone-tokens",
        "--lengths": "--draft-lengths",
        "--no-lengths": "--no-draft-lengths",
        "--reworded": "--paraphrase",
        "--no-reworded": "--no-paraphrase",
    },
    "learning-curve": _TRAINING | {"--more": "--train-data", "--results": "--output-dir"},
    "plan": _SIZING,
    "policies activate": {"--address": "--ray-address"},
    "profile": _DIR | {"--batches": "--batch-sizes", "--contexts": "--context-lengths"},
    "report": _FILE
    | _TRAINING
    | {
        "--loaded": "--under-load",
        "--often": "--repeated-answers",
        "--results": "--output-dir",
        "--reworded": "--paraphrased-data",
    },
    "retrain": _TRAINING
    | {
        "--every": "--interval",
        "--fewest-new": "--min-new-records",
        "--most-requests": "--max-requests",
        "--no-prove": "--no-require-significance",
        "--poll": "--poll-interval",
        "--prove": "--require-significance",
        "--reworded": "--paraphrased-data",
        "--stages": "--canary-shares",
        "--watched": "--holdout-requests",
    },
    "serve": {"--address": "--ray-address"},
    "simulate": _SIZING,
    "train": _DIR | _TRAINING | {"--from-records": "--records"},
}
"""Current command -> former flag -> flag."""


def modernise(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the arguments in current spelling, and the replaced pairs (former, current).

    Arguments after `--` stay unchanged.
    """
    end = words.index("--") if "--" in words else len(words)
    given, rest = list(words[:end]), list(words[end:])
    command, given, replaced = _command(given)
    flags = next((FLAGS[name] for name in (" ".join(command), *command[:1]) if name in FLAGS), {})
    for i, word in enumerate(given):
        flag, sign, value = word.partition("=")
        if (now := flags.get(flag)) is not None:
            given[i] = now + sign + value
            replaced.append((flag, now))
    return [*command, *given, *rest], replaced


def _command(words: list[str]) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """The current command, the words after it, and the replaced pairs."""
    for former, now in COMMANDS.items():
        path = [word for word in former.split() if not word.startswith("-")]
        switches = [word for word in former.split() if word.startswith("-")]
        after = words[len(path) :]
        if words[: len(path)] == path and all(switch in after for switch in switches):
            return now.split(), [word for word in after if word not in switches], [(former, now)]
    length = 2 if " ".join(words[:2]) in FLAGS else 1
    return words[:length], words[length:], []


class CommandGroup(TyperGroup):
    """All commands; replaces former spellings before parsing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; completion (`ctx.resilient_parsing`) only knows current spellings."""
        if not ctx.resilient_parsing:
            args, replaced = modernise(args)
            for former, now in replaced:
                err.print(
                    f"[yellow]warning:[/yellow] `{former}` is now `{now}`; the next release removes the former spelling",
                    highlight=False,
                    soft_wrap=True,
                )
        return super().parse_args(ctx, args)
