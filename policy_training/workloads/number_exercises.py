"""Families of exercises on numbers and lists; each call draws the parameters anew."""

from random import Random

from policy_training.workloads.exercises import Exercise, build, numbers, words


def _count_multiples(rng: Random) -> Exercise:
    k, limit = rng.randint(2, 12), rng.randint(-5, 30)
    return build(
        f"count_multiples_of_{k}(numbers: list[int]) -> int",
        f"Return how many of the numbers are multiples of {k} and larger than {limit}.",
        lambda xs: sum(x % k == 0 and x > limit for x in xs),
        *((numbers(rng),) for _ in range(2)),
    )


def _sum_of_powers(rng: Random) -> Exercise:
    power, kind = rng.randint(2, 4), rng.choice(("even", "odd"))
    return build(
        f"sum_{kind}_powers(numbers: list[int]) -> int",
        f"Return the sum of the {kind} numbers, each raised to the power {power}.",
        lambda xs: sum(x**power for x in xs if x % 2 == (kind == "odd")),
        *((numbers(rng, -9, 12),) for _ in range(2)),
    )


def _rotate(rng: Random) -> Exercise:
    side = rng.choice(("left", "right"))
    return build(
        f"rotate_{side}(items: list[int], steps: int) -> list[int]",
        f"Return a new list rotated to the {side} by the given number of steps, which may exceed the length.",
        lambda xs, n: [xs[(i + (n if side == "left" else -n)) % len(xs)] for i in range(len(xs))],
        *((numbers(rng), rng.randint(1, 12)) for _ in range(2)),
    )


def _chunks(rng: Random) -> Exercise:
    size = rng.randint(2, 5)
    return build(
        f"chunks_of_{size}(items: list[str]) -> list[list[str]]",
        f"Split the list into successive lists of {size} items; the last one may be shorter.",
        lambda xs: [xs[i : i + size] for i in range(0, len(xs), size)],
        *((words(rng),) for _ in range(2)),
    )


def _moving(rng: Random) -> Exercise:
    width, (name, best) = rng.randint(2, 4), rng.choice((("sum", sum), ("max", max), ("min", min)))
    return build(
        f"moving_{name}(numbers: list[int]) -> list[int]",
        f"Return the {name} of every window of {width} neighbouring numbers.",
        lambda xs: [best(xs[i : i + width]) for i in range(len(xs) - width + 1)],
        *((numbers(rng),) for _ in range(2)),
    )


def _nth(rng: Random) -> Exercise:
    n, word = rng.randint(2, 4), rng.choice(("largest", "smallest"))
    return build(
        f"nth_{word}(numbers: list[int], n: int = {n}) -> int | None",
        f"Return the n-th {word} distinct number, or None if there are fewer than n distinct numbers.",
        lambda xs, k=n: (sorted(set(xs), reverse=word == "largest") + [None] * k)[k - 1],
        (numbers(rng),),
        (numbers(rng, 0, 9), rng.randint(1, 6)),
    )


def _distinct(rng: Random) -> Exercise:
    which = rng.choice(("first", "last"))
    return build(
        f"keep_{which}(numbers: list[int]) -> list[int]",
        f"Remove duplicates so that only the {which} occurrence of each number stays, in the original order.",
        lambda xs: list(dict.fromkeys(xs)) if which == "first" else list(dict.fromkeys(xs[::-1]))[::-1],
        *((numbers(rng, 1, 5),) for _ in range(2)),
    )


def _clamp(rng: Random) -> Exercise:
    low, high = rng.randint(-20, 5), rng.randint(10, 40)
    return build(
        "clamp_all(numbers: list[int]) -> list[int]",
        f"Replace numbers below {low} by {low} and numbers above {high} by {high}.",
        lambda xs: [min(max(x, low), high) for x in xs],
        *((numbers(rng, -50, 90),) for _ in range(2)),
    )


def _merge(rng: Random) -> Exercise:
    order = rng.choice(("ascending", "descending"))
    pairs = ([sorted(numbers(rng), reverse=order == "descending") for _ in range(2)] for _ in range(2))
    return build(
        f"merge_{order}(left: list[int], right: list[int]) -> list[int]",
        f"Merge two lists in {order} order into one list in {order} order, in linear time.",
        lambda a, b: sorted(a + b, reverse=order == "descending"),
        *(tuple(pair) for pair in pairs),
    )


def _matrix(rng: Random) -> Exercise:
    rows, columns, k = rng.randint(2, 3), rng.randint(2, 4), rng.randint(1, 9)
    matrix = [[rng.randint(0, 20) for _ in range(columns)] for _ in range(rows)]
    return build(
        "transpose_and_add(matrix: list[list[int]]) -> list[list[int]]",
        f"Swap the rows and columns of the matrix and add {k} to every number.",
        lambda m: [[x + k for x in column] for column in zip(*m, strict=True)],
        (matrix,),
    )


def _interleave(rng: Random) -> Exercise:
    fill = rng.choice((0, -1, 99, 1))
    return build(
        "interleave(left: list[int], right: list[int]) -> list[int]",
        f"Take items from the two lists in turn; where the shorter list has ended, take {fill} instead.",
        lambda a, b: [xs[i] if i < len(xs) else fill for i in range(max(len(a), len(b))) for xs in (a, b)],
        *((numbers(rng), numbers(rng)) for _ in range(2)),
    )


def _pairs(rng: Random) -> Exercise:
    total = rng.randint(5, 20)
    return build(
        f"pairs_with_sum_{total}(numbers: list[int]) -> int",
        f"Count the pairs of different positions whose numbers add up to {total}.",
        lambda xs: sum(xs[i] + xs[j] == total for i in range(len(xs)) for j in range(i)),
        *((numbers(rng, 0, total),) for _ in range(2)),
    )


def _price(rng: Random) -> Exercise:
    bulk, low, high = rng.randint(5, 30), rng.randint(2, 9), rng.randint(10, 20)
    return build(
        "total_price(quantity: int) -> int",
        f"One item costs {high} dollars; from {bulk} items on, every item costs {low}. Negative quantities cost 0.",
        lambda n: max(n, 0) * (low if n >= bulk else high),
        *((n,) for n in (rng.randint(1, bulk - 1), rng.randint(bulk, 90), -rng.randint(1, 5))),
    )


def _primes(rng: Random) -> Exercise:
    low = rng.randint(2, 20)
    return build(
        f"primes_from_{low}(limit: int) -> list[int]",
        f"Return all prime numbers from {low} up to and including the limit.",
        lambda n: [x for x in range(low, n + 1) if all(x % d for d in range(2, x))],
        *((rng.randint(15, 60),) for _ in range(2)),
    )


FAMILIES = (
    _count_multiples,
    _sum_of_powers,
    _rotate,
    _chunks,
    _moving,
    _nth,
    _distinct,
    _clamp,
    _merge,
    _matrix,
    _interleave,
    _pairs,
    _price,
    _primes,
)
