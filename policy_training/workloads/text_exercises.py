"""Families of exercises on texts; each call draws the parameters anew."""

import re
import string
from random import Random

from policy_training.workloads.exercises import WORDS, Exercise, build, sentence, words


def _shift_letters(rng: Random) -> Exercise:
    k, low = rng.randint(1, 25), string.ascii_lowercase
    return build(
        f"shift_by_{k}(text: str) -> str",
        f"Replace each lower-case letter by the one {k} places later in the alphabet, wrapping around after z.",
        lambda s: s.translate(str.maketrans(low, low[k:] + low[:k])),
        *((sentence(rng),) for _ in range(2)),
    )


def _long_words(rng: Random) -> Exercise:
    n, how = rng.randint(4, 7), rng.choice(("upper", "title", "lower"))
    return build(
        "long_words(text: str) -> list[str]",
        f"Return the words of the text with at least {n} letters, in {how} case, in alphabetical order.",
        lambda s: sorted(getattr(w, how)() for w in s.split() if len(w) >= n),
        *((sentence(rng),) for _ in range(2)),
    )


def _count_letters(rng: Random) -> Exercise:
    letters = "".join(sorted(rng.sample(string.ascii_lowercase[:20], rng.randint(2, 5))))
    return build(
        f"count_{letters}(text: str) -> int",
        f'Count the characters of the text that are one of "{letters}", in upper or lower case.',
        lambda s: sum(c in letters for c in s.lower()),
        *((sentence(rng),) for _ in range(2)),
    )


def _parse_pairs(rng: Random) -> Exercise:
    outer, inner = rng.choice(";,|&"), rng.choice(":=>")
    texts = (outer.join(f"{w}{inner}{rng.randint(0, 99)}" for w in words(rng)) for _ in range(2))
    return build(
        "parse_pairs(text: str) -> dict[str, int]",
        f'Parse pairs separated by "{outer}", where "{inner}" stands between a key and its whole number.',
        lambda s: {k: int(v) for k, v in (pair.split(inner) for pair in s.split(outer))},
        *((text,) for text in texts),
    )


def _group(rng: Random) -> Exercise:
    what, key = rng.choice((("length", len), ("first letter", lambda w: w[0]), ("last letter", lambda w: w[-1])))
    return build(
        f"group_by_{what.replace(' ', '_')}(words: list[str]) -> dict[{'int' if key is len else 'str'}, list[str]]",
        f"Group the words by their {what}; groups and words keep the order in which they first appear.",
        lambda ws: {k: [w for w in ws if key(w) == k] for k in dict.fromkeys(map(key, ws))},
        *((words(rng),) for _ in range(2)),
    )


def _palindrome(rng: Random) -> Exercise:
    n = rng.randint(2, 6)
    half = rng.choice(WORDS)
    return build(
        "is_palindrome(text: str) -> bool",
        f"Tell whether the letters read the same in both directions, ignoring case. Texts under {n} letters are not.",
        lambda s: len(s) >= n and s.lower() == s.lower()[::-1],
        (half.capitalize() + half[::-1],),
        (rng.choice(WORDS),),
    )


def _run_lengths(rng: Random) -> Exercise:
    texts = ("".join(rng.choice("abcxyz") * rng.randint(1, 5) for _ in range(4)) for _ in range(2))
    form = rng.choice(("{1}{0}", "{0}{1}", "{0}x{1}", "{0}*{1} ", "({0},{1})"))
    return build(
        "run_lengths(text: str) -> str",
        f"Encode each run of one character, such as aaa, in the form {form.format('a', 3)!r}, one after another.",
        lambda s: "".join(form.format(m[1], len(m[0])) for m in re.finditer(r"(.)\1*", s)),
        *((text,) for text in texts),
    )


def _shorten(rng: Random) -> Exercise:
    n, end = rng.randint(8, 20), rng.choice(("...", "~", " etc.", "--"))
    return build(
        "shorten(text: str) -> str",
        f'Cut a text of more than {n} characters to its first {n} and append "{end}"; return others unchanged.',
        lambda s: s if len(s) <= n else s[:n] + end,
        *((text,) for text in (sentence(rng), rng.choice(WORDS))),
    )


def _mask(rng: Random) -> Exercise:
    keep, mark = rng.randint(1, 5), rng.choice("*#xX-")
    return build(
        "mask(code: str) -> str",
        f'Replace all characters except the last {keep} by "{mark}".',
        lambda s: mark * max(0, len(s) - keep) + s[-keep:],
        *((str(rng.randint(10**k, 10**12)),) for k in (6, 8)),
    )


def _word_counts(rng: Random) -> Exercise:
    n, words = rng.randint(2, 3), rng.sample(WORDS, 3)
    text = " ".join(rng.choice(words) for _ in range(8))
    return build(
        "frequent_words(text: str) -> list[str]",
        f"Return the distinct words that occur more than {n} times, in the order of first appearance.",
        lambda s: [w for w in dict.fromkeys(s.split()) if s.split().count(w) > n],
        (text,),
    )


def _fizzbuzz(rng: Random) -> Exercise:
    (a, b), (x, y) = rng.sample((2, 3, 4, 5, 7), 2), rng.sample(WORDS, 2)
    return build(
        f"{x}_{y}(n: int) -> list[str]",
        f'Count from 1 to n. Say "{x}" for multiples of {a}, "{y}" for multiples of {b}, both words joined for both, '
        "else the number.",
        lambda n: [x * (i % a == 0) + y * (i % b == 0) or str(i) for i in range(1, n + 1)],
        *((rng.randint(3, 12),) for _ in range(2)),
    )


def _duration(rng: Random) -> Exercise:
    sep = rng.choice((":", " ", ".", "-"))
    return build(
        "format_duration(seconds: int) -> str",
        f'Format seconds as hours, minutes and seconds of two digits each, separated by "{sep}".',
        lambda n: sep.join(f"{part:02}" for part in (n // 3600, n // 60 % 60, n % 60)),
        *((rng.randint(0, 90000),) for _ in range(3)),
    )


def _base(rng: Random) -> Exercise:
    base = rng.randint(2, 9)
    return build(
        f"to_base_{base}(number: int) -> str",
        f"Write a number, 0 or more, with the digits of base {base}.",
        lambda n: _digits(n, base),
        *((rng.randint(0, 900),) for _ in range(3)),
    )


def _digits(number: int, base: int) -> str:
    return (_digits(number // base, base) if number >= base else "") + str(number % base)


FAMILIES = (
    _shift_letters,
    _long_words,
    _count_letters,
    _parse_pairs,
    _group,
    _palindrome,
    _run_lengths,
    _shorten,
    _mask,
    _word_counts,
    _fizzbuzz,
    _duration,
    _base,
)
