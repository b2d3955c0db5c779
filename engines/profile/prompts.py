"""Prompts for measuring engines, and their adjustment to a length.

A drafter's step time depends on whether it finds a draft, so these are typical requests: a conversation, code,
arithmetic, an edit.
"""

from collections.abc import Sequence

from draftpick.engines.profile.concurrent_decode import Target
from draftpick.engines.profile.profile import ProfileError

TEXTS: tuple[str, ...] = (
    "My neighbour starts drumming every evening at nine. How do I bring it up without starting a quarrel? "
    "Please give me three short opening sentences and say what speaks for each.",
    "Write a Python function `merge(intervals)` that takes a list of (start, end) tuples and returns the list with all "
    "overlapping intervals joined, sorted by start. Add a docstring and two examples.",
    "A baker makes 24 trays of 18 rolls. A quarter is sold before eight, half of the rest before noon, and 60 rolls go "
    "to a school. How many rolls are left? Show each step of the calculation.",
    "Rename the variable `tmp` to `total` in this code, change nothing else, and print the whole code again:\n\n"
    "def mean(values):\n    tmp = 0.0\n    for value in values:\n        tmp += value\n"
    "    if not values:\n        raise ValueError('no values')\n    return tmp / len(values)\n",
    "What is the difference between a comet and an asteroid? Explain it to a child of ten in one paragraph.",
    "Find the mistake in this SQL query and write it correctly: SELECT name, COUNT(*) FROM orders WHERE COUNT(*) > 3 "
    "GROUP BY name ORDER BY COUNT(*) DESC;",
    "Solve for x and check the result: 3 * (x - 4) + 5 = 2 * (x + 6). Then compute x squared minus 7.",
    "Correct spelling and grammar of this note and repeat the whole note: Dear all, the meeting on tuesday are moved "
    "to thursday at 3 pm, becuase the big room is not free. Please bring you're reports and tell me until wednesday "
    "if you can not come. Best regards, Ines",
)


_HEAD, _SURPLUS = 32, 1.25


async def fitted(target: Target, texts: Sequence[str], length: int) -> list[list[int]]:
    """Return the texts as chat prompts of `length` tokens each: preceded by other texts, and cut after their head.

    Exact lengths just above the blocks of a prefix cache leave hardly any prefill to a repeated prompt.
    """
    return [await _fit(target, texts, i, length) for i in range(len(texts))]


async def _fit(target: Target, texts: Sequence[str], i: int, length: int) -> list[int]:
    text = texts[i]
    tokens = await _tokens(target, text)
    wanted = max(1, round(_SURPLUS * len(text) * length / len(tokens)))
    before = i
    while len(text) < wanted:
        before -= 1
        text = f"{texts[before % len(texts)][-(wanted - len(text)) :]}\n\n{text}"
    tokens = await _tokens(target, text)
    head = min(_HEAD, length // 2)
    return tokens if len(tokens) <= length else tokens[:head] + tokens[head - length :]


async def _tokens(target: Target, text: str) -> list[int]:
    """Tokenize a text as a chat prompt."""
    messages = [{"role": "user", "content": text}]
    answer = await target.ask("/tokenize", {"model": target.model, "messages": messages})
    tokens = answer.get("tokens") if isinstance(answer, dict) else None
    if not tokens or not all(type(token) is int for token in tokens):
        raise ProfileError("the engine's /tokenize returned no tokens: check that it is vLLM")
    return list(tokens)
