"""Exercises, each a small Python function to write, with examples computed by a reference solution."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from policy_training.workloads.vocabulary import listed

WORDS = listed(
    "amber anchor apple arrow autumn banana basket beacon bridge button camera candle canyon carpet castle cherry "
    "circle cloud copper cotton desert dragon engine falcon feather forest garden ginger guitar hammer harbor "
    "island jacket jungle kettle ladder lantern lemon level magnet marble meadow mirror motor noon ocean orange "
    "pepper pillow planet radar ribbon river rocket saddle school shadow silver socks spiral stone summer temple "
    "ticket tunnel valley velvet violin walnut window winter yellow zipper"
)


@dataclass(frozen=True, slots=True)
class Exercise:
    """A function to write: signature without `def`, description, examples as a doctest shows them."""

    signature: str
    doc: str
    examples: tuple[str, ...]

    @property
    def stub(self) -> str:
        """The function as code with a docstring and no body."""
        body = "\n".join((*textwrap.wrap(self.doc, 100), "", *self.examples))
        return f'def {self.signature}:\n    """{textwrap.indent(body, "    ").lstrip()}\n    """'


def build(signature: str, doc: str, solve: Callable[..., object], *inputs: tuple[Any, ...]) -> Exercise:
    """Compute each input's example with the reference solution."""
    name = signature.partition("(")[0]
    calls = (f">>> {name}({', '.join(map(repr, given))})\n{solve(*given)!r}" for given in inputs)
    return Exercise(signature, doc, tuple(calls))


def numbers(rng: Random, low: int = -20, high: int = 60) -> list[int]:
    """Four to eight whole numbers, both bounds included."""
    return [rng.randint(low, high) for _ in range(rng.randint(4, 8))]


def words(rng: Random) -> list[str]:
    """Three to six different lower-case words."""
    return rng.sample(WORDS, rng.randint(3, 6))


def sentence(rng: Random) -> str:
    """Words as a text that begins with a capital letter."""
    return " ".join(words(rng)).capitalize()
