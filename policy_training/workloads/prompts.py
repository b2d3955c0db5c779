"""Prompts generated from a seed: several kinds evenly mixed, no duplicate text.

To add a kind: write `data/<kind>.yaml` with an entry `prompt` (see templates.py) and add its name to `KINDS`.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from random import Random
from typing import Any

KINDS: tuple[str, ...] = ("math", "code", "edit", "summary", "chat", "json")
SAMPLED_TEMPERATURE = 0.7
_TRIES = 1000  # consecutive repeats after which a kind counts as exhausted
_IDS_PER_SEED = 1_000_000  # ids count from seed times this, so that ids of two seeds differ


GENERATED = "generated"
"""Source of the prompts of `generate`."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to replay. `id` is "<kind>-<number>", stable for a seed.

    `text`: the last user turn; `history`: the turns before it, a system message included. `source`: public name of the
    data set or repository that the prompt is from. `language`: natural or programming language, if known.
    """

    id: str
    kind: str
    text: str
    temperature: float = 0.0
    max_tokens: int = 128
    top_p: float = 1.0
    history: tuple[Message, ...] = ()
    source: str = ""
    language: str | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as OpenAI's chat API takes it; the last message is the user's."""
        return [*({"role": m.role, "content": m.content} for m in self.history), {"role": "user", "content": self.text}]

    @property
    def request_fields(self) -> dict[str, Any]:
        """The fields of its request to `/v1/chat/completions`, without those of a run (model, stream)."""
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}
        return {"messages": self.messages, **sampling}

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "Prompt":
        """Rebuild a prompt from the output of `dataclasses.asdict`."""
        return cls(**{**fields, "history": tuple(Message(**turn) for turn in fields["history"])})


def generate(
    n: int,
    *,
    seed: int,
    kinds: Sequence[str] = KINDS,
    sampled_share: float = 0.0,
    max_tokens: int = 128,
) -> list[Prompt]:
    """Return `n` distinct prompts in an order shuffled by `seed`; counts of two kinds differ by at most one.

    `sampled_share` of them (0 to 1, rounded to whole prompts) get temperature 0.7, the rest 0. Same arguments and same
    Python version, same prompts. Raises ValueError on wrong arguments and when a kind runs out of texts.

    Two seeds share almost no prompt, but both use the same standard library: a function or a passage of one seed may
    occur in a prompt of another, with another request or cut elsewhere (most passages of "summary" do).
    """
    kinds = tuple(dict.fromkeys(kinds))
    _check(n, kinds, sampled_share, max_tokens)
    rng, seen = Random(f"order {seed}"), set[str]()
    prompts = [
        Prompt(f"{kind}-{seed * _IDS_PER_SEED + number}", kind, text, 0.0, max_tokens, source=GENERATED)
        for kind, count in zip(kinds, _shares(n, len(kinds)), strict=True)
        for number, text in enumerate(_texts(kind, count, seed, seen))
    ]
    rng.shuffle(prompts)
    for i in rng.sample(range(n), round(n * sampled_share)):
        prompts[i] = replace(prompts[i], temperature=SAMPLED_TEMPERATURE)
    return prompts


def interleaved(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Interleave the prompts by kind, so that every prefix of the list is balanced."""
    by_kind: dict[str, list[Prompt]] = {kind: [] for kind in sorted({p.kind for p in prompts})}
    for prompt in prompts:
        by_kind[prompt.kind].append(prompt)
    return [p for one in zip_longest(*by_kind.values()) for p in one if p is not None]


def _check(n: int, kinds: tuple[str, ...], sampled_share: float, max_tokens: int) -> None:
    """Raise ValueError for the first wrong argument of `generate`."""
    if not 0 <= n <= _IDS_PER_SEED:
        raise ValueError(f"n is {n}; it must be in [0, {_IDS_PER_SEED}]")
    if not kinds:
        raise ValueError(f"kinds is empty; choose from {', '.join(KINDS)}")
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(_unknown(kind))
    if not 0 <= sampled_share <= 1:
        raise ValueError(f"sampled_share is {sampled_share}; it must be in [0, 1]")
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; it must be 1 or more")


def _unknown(kind: str) -> str:
    """The error text for an unknown kind."""
    nearest = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.0)
    return f"unknown kind of prompt {kind!r}; known: {', '.join(KINDS)}; did you mean {nearest[0]!r}?"


def _shares(n: int, parts: int) -> list[int]:
    """Split `n` into `parts` integers that differ by at most one."""
    return [n // parts + (i < n % parts) for i in range(parts)]


def _texts(kind: str, count: int, seed: int, seen: set[str]) -> Iterator[str]:
    """Yield `count` texts of one kind that are not in `seen`, and add them to it."""
    from draftpick.policy_training.workloads.templates import Templates  # jinja2 is not in the core

    templates = Templates(kind, Random(f"{kind} {seed}"))
    for done in range(count):
        text = next((t for t in (templates.prompt() for _ in range(_TRIES)) if t not in seen), None)
        if text is None:
            raise ValueError(f"kind {kind!r} has only about {done} distinct prompts; {count} were requested")
        seen.add(text)
        yield text
