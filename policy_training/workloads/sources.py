"""How a command names prompts: `FILE[:kind][@n]`, or `generated[:kind][@n]`."""

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Literal

from draftpick.policy_training.workloads.files import PromptFile, read_file
from draftpick.policy_training.workloads.overlap import Overlap, describe_overlaps, split_overlaps
from draftpick.policy_training.workloads.prompts import (
    GENERATED,
    KINDS,
    SAMPLED_TEMPERATURE,
    Message,
    Prompt,
    generate,
    interleaved,
)
from draftpick.policy_training.workloads.splits import SPLITS, Split

OnOverlap = Literal["fail", "drop", "allow"]
_SPELLING = re.compile(r"(.*?)(?::([\w-]+))?(?:@(\d+))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PromptSource:
    """A file of prompts, or the project's own generator; of one kind only, and at most `n` of each kind, if given."""

    name: str
    kind: str | None = None
    n: int | None = None

    @classmethod
    def parse(cls, text: str) -> "PromptSource":
        """Read `FILE[:kind][@n]`; a file of exactly this name comes first."""
        parsed = _SPELLING.fullmatch(text)
        assert parsed is not None
        name, kind, n = parsed.groups()
        if not name or n == "0":
            raise ValueError(f"prompts {text!r}: give FILE[:kind][@n], as in chats.jsonl:math@500, or {GENERATED}")
        return cls(text) if Path(text).is_file() else cls(name, kind, int(n) if n else None)

    def file(self, max_tokens: int = 128) -> PromptFile | None:
        """Read the file; None for the project's own generator. Raises ValueError and OSError."""
        return None if self.name == GENERATED else read_file(Path(self.name), max_tokens=max_tokens)

    def parts(self, n: int, options: "Selection", left_out: Set[str] = frozenset()) -> list[list[Prompt]]:
        """Prompts by kind, shuffled by the seed, at most `n` of each kind, or the source's own number.

        `left_out`: ids of prompts not to take. Raises ValueError if the source has none of its kind.
        """
        n, kinds = self.n or n, (self.kind,) if self.kind else options.kinds
        file = self.file(options.max_tokens)
        if file is None:
            wanted = [kind for kind in KINDS if kind in kinds or not kinds]
            prompts = generate(n * len(wanted), seed=options.generated_seed, kinds=wanted) if wanted else []
            prompts = [replace(prompt, max_tokens=options.max_tokens) for prompt in prompts]
        else:
            prompts = [p for p in file.prompts if p.id not in left_out]
            prompts = [p for p in prompts if options.split in (None, file.splits[p.id])]
            wanted = sorted({p.kind for p in prompts if p.kind in kinds or not kinds})
        if self.kind and not wanted:
            raise ValueError(f"no prompts of kind {self.kind} in {self.name}")
        rng, own = Random(options.seed), file.own_temperature if file else frozenset[str]()
        sampled = {p.id for p in prompts if rng.random() < options.sampled_share} - own
        prompts = [replace(p, temperature=SAMPLED_TEMPERATURE) if p.id in sampled else p for p in prompts]
        parts = [[p for p in prompts if p.kind == kind] for kind in wanted]
        for part in parts:
            Random(options.seed).shuffle(part)
        return [part[:n] for part in parts]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which prompts to take of every source, and how to sample those that do not say it.

    `kinds`: only these, empty: all; `sampled_share` of the prompts gets temperature 0.7; `generated_seed`: seed of
    generated prompts. `overlap`: what happens if a `split` is asked for and the splits of the files overlap.
    """

    seed: int = 0
    generated_seed: int = 0
    kinds: tuple[str, ...] = ()
    max_tokens: int = 128
    sampled_share: float = 0.0
    split: Split | None = None
    overlap: OnOverlap = "fail"


def prompts_of(sources: Sequence[PromptSource], n: int, options: Selection) -> list[Prompt]:
    """At most `n` prompts of several sources, their kinds alternating; no conversation twice, ids distinct."""
    left_out = overlapping(sources, options)
    prompts: dict[str, Prompt] = {}
    conversations = set[tuple[tuple[Message, ...], str]]()
    for i, source in enumerate(sources):
        for prompt in (prompt for part in source.parts(n, options, left_out) for prompt in part):
            if (said := (prompt.history, prompt.text)) in conversations:
                continue
            conversations.add(said)
            own = prompt.id if prompt.id not in prompts else f"{prompt.id}-{i}"
            prompts[own] = replace(prompt, id=own)
    return interleaved(list(prompts.values()))[:n]


def overlapping(sources: Sequence[PromptSource], options: Selection) -> frozenset[str]:
    """Ids of the prompts that share texts with an earlier split of these files.

    Empty without a split, or if overlap is allowed. Raises ValueError for the first overlap unless such prompts are to
    be dropped, and if no file has the split.
    """
    files = dict.fromkeys(file for source in sources if (file := source.file(options.max_tokens)) is not None)
    if options.split is None or not files:
        return frozenset()
    if not any(options.split in file.splits.values() for file in files):
        next(iter(files)).of_split(options.split)
    if options.overlap == "allow":
        return frozenset()
    found = file_overlaps(tuple(files))
    for (first, second), overlaps in found.items() if options.overlap == "fail" else ():
        text = describe_overlaps(first, second, overlaps)
        raise ValueError(f"{text}; remove them from one of the splits, or give --overlap drop (or allow)")
    return frozenset(one.second for overlaps in found.values() for one in overlaps)


@lru_cache(maxsize=2)
def file_overlaps(files: tuple[PromptFile, ...]) -> dict[tuple[str, str], list[Overlap]]:
    """Overlaps of the splits of these files together, by pair of splits."""
    prompts = [(file.splits[prompt.id], prompt) for file in files for prompt in file.prompts]
    return split_overlaps({split: [prompt for own, prompt in prompts if own == split] for split in SPLITS})
