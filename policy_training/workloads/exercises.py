"""Reference solutions of the exercises in data/code.yaml, and the examples computed from them."""

import re
import string
import textwrap
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

_LOWER = string.ascii_lowercase
_BEST: dict[str, Callable[[list[int]], int]] = {"sum": sum, "max": max, "min": min}
_KEYS: dict[str, Callable[[str], object]] = {
    "length": len,
    "first letter": lambda word: word[0],
    "last letter": lambda word: word[-1],
}
# Each takes the variables drawn for the exercise, then the arguments of one call.
_SOLUTIONS: dict[str, Callable[..., object]] = {
    "count_multiples": lambda p, xs: sum(x % p.k == 0 and x > p.limit for x in xs),
    "sum_of_powers": lambda p, xs: sum(x**p.power for x in xs if x % 2 == (p.parity == "odd")),
    "rotate": lambda p, xs, n: [xs[(i + (n if p.side == "left" else -n)) % len(xs)] for i in range(len(xs))],
    "chunks": lambda p, xs: [xs[i : i + p.size] for i in range(0, len(xs), p.size)],
    "moving": lambda p, xs: [_BEST[p.best](xs[i : i + p.width]) for i in range(len(xs) - p.width + 1)],
    "nth": lambda p, xs, n=None: [*sorted(set(xs), reverse=p.order == "largest"), *[None] * 9][(n or p.n) - 1],
    "distinct": lambda p, xs: list(dict.fromkeys(xs)) if p.which == "first" else list(dict.fromkeys(xs[::-1]))[::-1],
    "clamp": lambda p, xs: [min(max(x, p.low), p.high) for x in xs],
    "merge": lambda p, a, b: sorted(a + b, reverse=p.down),
    "transpose": lambda p, m: [[x + p.k for x in column] for column in zip(*m, strict=True)],
    "interleave": lambda p, a, b: [
        xs[i] if i < len(xs) else p.fill for i in range(max(len(a), len(b))) for xs in (a, b)
    ],
    "pairs": lambda p, xs: sum(xs[i] + xs[j] == p.total for i in range(len(xs)) for j in range(i)),
    "price": lambda p, n: max(n, 0) * (p.low if n >= p.bulk else p.high),
    "primes": lambda p, n: [x for x in range(p.low, n + 1) if all(x % d for d in range(2, x))],
    "shift_letters": lambda p, s: s.translate(str.maketrans(_LOWER, _LOWER[p.k :] + _LOWER[: p.k])),
    "long_words": lambda p, s: sorted(getattr(w, p.how)() for w in s.split() if len(w) >= p.n),
    "count_letters": lambda p, s: sum(c in p.letters for c in s.lower()),
    "parse_pairs": lambda p, s: {k: int(v) for k, v in (pair.split(p.inner) for pair in s.split(p.outer))},
    "group": lambda p, ws: {k: [w for w in ws if _KEYS[p.what](w) == k] for k in dict.fromkeys(map(_KEYS[p.what], ws))},
    "is_palindrome": lambda p, s: len(s) >= p.n and s.lower() == s.lower()[::-1],
    "run_lengths": lambda p, s: "".join(p.form.format(m[1], len(m[0])) for m in re.finditer(r"(.)\1*", s)),
    "shorten": lambda p, s: s if len(s) <= p.n else s[: p.n] + p.end,
    "mask": lambda p, s: p.mark * max(0, len(s) - p.keep) + s[-p.keep :],
    "frequent_words": lambda p, s: [w for w in dict.fromkeys(s.split()) if s.split().count(w) > p.n],
    "fizzbuzz": lambda p, n: [p.x * (i % p.a == 0) + p.y * (i % p.b == 0) or str(i) for i in range(1, n + 1)],
    "duration": lambda p, n: p.sep.join(f"{part:02}" for part in (n // 3600, n // 60 % 60, n % 60)),
    "to_base": lambda p, n: _digits(n, p.base),
}


def _digits(number: int, base: int) -> str:
    return (_digits(number // base, base) if number >= base else "") + str(number % base)


def examples(task: Mapping[str, Any]) -> str:
    """Return one call with its result per input of an exercise, as a doctest."""
    name, solve = task["signature"].partition("(")[0], _SOLUTIONS[task["solve"]]
    drawn = SimpleNamespace(**task)
    return "\n".join(f">>> {name}({', '.join(map(repr, given))})\n{solve(drawn, *given)!r}" for given in task["inputs"])


def stub(task: Mapping[str, Any], examples: str) -> str:
    """Return the exercise as code with a docstring and no body."""
    body = "\n".join((*textwrap.wrap(task["doc"], 100), "", examples))
    return f'def {task["signature"]}:\n    """{textwrap.indent(body, "    ").lstrip()}\n    """'
